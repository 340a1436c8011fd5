"""The AutoML frameworks of Balaji & Allen 2018, each in an environment of its own, under one protocol."""
