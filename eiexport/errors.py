"""A user's mistake, told in one line: what, where, and how to fix it."""


class ExportError(Exception):
    """Base of everything the toolchain refuses; the command line prints it and exits with 2."""


class GraphError(ExportError):
    """The graph breaks a rule; names the node, the rule, the value, and a likely fix."""


class TraceError(ExportError):
    """A trace file is unreadable, or two traces cannot be aligned."""
