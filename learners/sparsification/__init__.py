"""Weight sparsification: zeros that stay zeros (Zhu & Gupta 2017; Han et al. 2015)."""
