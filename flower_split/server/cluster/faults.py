"""What Ray raises, as what it means for a session."""

from flower_split.errors import FlowerSplitError, TrunkBusyError, TrunkUnavailableError


def meant(error: BaseException, stage: str) -> BaseException:
    """The error that a stage raised, or why it could not be asked.

    Ray's own texts are left out: they have the traceback, and paths, of another machine.

    Args:
        error: That a call of an actor failed with.
        stage: Which one, in words.
    """
    if isinstance(error, FlowerSplitError) and not hasattr(error, "cause"):
        return error
    cause = getattr(error, "cause", None)
    seen = 0
    while isinstance(cause, BaseException) and seen < 8:
        if isinstance(cause, FlowerSplitError) and not hasattr(cause, "cause"):
            return cause
        cause, seen = getattr(cause, "cause", None), seen + 1
    kind = type(error).__name__
    if "OutOfMemory" in kind or "ObjectStoreFull" in kind:
        return TrunkBusyError(
            f"{stage} is out of memory. Lower train.batch-size or train.in-flight"
        )
    if any(word in kind for word in _GONE):
        return TrunkUnavailableError(
            f"{stage} has ended, and its sessions with it; Ray brings it back, and the next round "
            "goes on"
        )
    return TrunkUnavailableError(f"{stage} failed with {kind}; Ray's logs say why")


_GONE = ("Actor", "Died", "Crashed", "ObjectLost", "Owner", "Reconstruction", "RpcError", "Freed")
