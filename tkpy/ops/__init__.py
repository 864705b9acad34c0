"""The ops: one folder each, found by name. `tkpy.ops.attention(...)` is `tkpy.attention(...)`."""

import sys

from tkpy import registry

registry.discover(sys.modules[__name__])
