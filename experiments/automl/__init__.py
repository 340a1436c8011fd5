"""The AutoML frameworks of Balaji & Allen 2018, each in its own environment, on equal terms."""
