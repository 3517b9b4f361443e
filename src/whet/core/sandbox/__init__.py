"""Jinja's sandbox with limits: a stranger's chat template ends, soon, and writes no more than memory holds.

Jinja's own sandbox keeps a template from what it must not touch, not from taking all time and all memory: loops in
loops, ``'a' * 10**10``, a list of lists of lists written out. Here each turn of a loop, each call of a macro and each
new string is counted, by calls that the compiler puts into the template's code. A clock is read now and then by the
same calls, so no thread, no signal and no other process is needed, and it works wherever a template is rendered.

What may be large is asked for its size before it is made, where the size can be known (``*``, ``center``, ``replace``,
formatting), and right after, where it is at most the sum of what was there already. Lists and mappings are weighed when
they are made, all that is in them included, so that nothing can be built of which writing it out takes for ever.

This is the one module of core that needs a package (jinja2): it is used by `whet.data`, for its own rendering, and by
`whet.model`, for transformers'.
"""

from whet.core.sandbox.budget import Limits, TooLarge, TooSlow
from whet.core.sandbox.environment import BoundedEnvironment, BoundedFormatter, bounded_filter, checked_parts
from whet.core.sandbox.growth import check_filter, check_modulo

__all__ = [
    "BoundedEnvironment",
    "BoundedFormatter",
    "Limits",
    "TooLarge",
    "TooSlow",
    "bounded_filter",
    "check_filter",
    "check_modulo",
    "checked_parts",
]
