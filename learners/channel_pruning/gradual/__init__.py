"""Pruning while the network trains: penalties, sparse training, group by group."""
