"""What a plan costs: multiply-adds, parameters, bytes, bit operations, measured tables."""
