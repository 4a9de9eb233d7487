"""Data: the demo bundle that the package carries, and the text that its adapters were trained on."""
