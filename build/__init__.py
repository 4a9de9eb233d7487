"""From a checkpoint and rows of data, or finished adapters, to a bundle."""

import logging

# Whenever it is imported, it tells people to install a package by which it would download compiled code.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
# Of every way to log in that is tried, it tells why it failed; a page of that.
logging.getLogger("azure").setLevel(logging.CRITICAL)
