"""A user's mistake, told in one line: what, where, and how to fix it."""


class ExportError(Exception):
    """Base of everything the toolchain refuses; the command line prints it and exits with 2."""


class GraphError(ExportError):
    """The graph breaks a rule; names the node, the rule, the value, and a likely fix."""


class TraceError(ExportError):
    """A trace file is unreadable, or two traces cannot be aligned."""


def told(e: OSError) -> str:
    """A failed read or write in one line; raises it again where the system gives no reason."""
    if e.errno is None:
        raise e
    reason = str(e.strerror).splitlines()[0]
    return f"{e.filename or 'output'}: {reason}; check the path, its permissions and free space"
