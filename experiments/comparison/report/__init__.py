"""The report of a comparison: page, tables, figures, TensorBoard."""
