"""The digest of a log: what a person wants of it, once each."""

from flower_split.apps.flower.log_digest import digest, last_round, without_colours

LOG = """\
Using SuperLink: private (127.0.0.1:58643)
\x1b[92mINFO \x1b[0m:      Starting Flower Simulation
\x1b[93mWARNING \x1b[0m:   Since flwr 1.32, default simulated SuperNodes changed from 10 to 2.
Failed to load something.so: Could not load this library
\x1b[92mINFO \x1b[0m:      the trunk listens on 127.0.0.1:34829, TLS
\x1b[92mINFO \x1b[0m:      before training: eval-loss 4.462; silos 0, 1, 2; 25.9 s
\x1b[92mINFO \x1b[0m:      round 1 of 2 begins
\x1b[36m(ClientAppActor pid=3012)\x1b[0m \x1b[91mERROR \x1b[0m:     silo '0': of its own log
\x1b[93mWARNING \x1b[0m:   silo 2: no reply that counts: no field 'nope'
\x1b[93mWARNING \x1b[0m:   silo 2: no reply that counts: no field 'nope'
\x1b[92mINFO \x1b[0m:      round 1 of 2: train-loss 4.077; silos 0, 1; 16.3 s
\x1b[91mERROR \x1b[0m:     Traceback (most recent call last):
  File "x.py", line 1, in <module>
- not a reason
\x1b[91mERROR \x1b[0m:     Simulation raised an exception: round 2: failed on every silo asked:
- silos 0, 1: no field 'nope'
\x1b[91mERROR \x1b[0m:     Exit Code: 700
""".splitlines(keepends=True)


def test_only_what_matters_is_shown_and_once() -> None:
    assert list(digest(LOG)) == [
        ("INFO", "the trunk listens on 127.0.0.1:34829, TLS"),
        ("INFO", "before training: eval-loss 4.462; silos 0, 1, 2; 25.9 s"),
        ("WARNING", "silo 2: no reply that counts: no field 'nope'"),
        ("INFO", "round 1 of 2: train-loss 4.077; silos 0, 1; 16.3 s"),
    ]


def test_reasons_below_a_line_that_is_shown_are_shown() -> None:
    lines = ["WARNING :   2 problems:", "- one", "- two", "no more", "- three"]
    assert [text for _, text in digest(lines)] == ["2 problems:", "- one", "- two"]


def test_the_last_round_that_has_ended() -> None:
    assert last_round(LOG).startswith("round 1 of 2: ")
    assert last_round(LOG[:5]) == ""
    assert last_round(LOG[:7]).startswith("before training: ")


def test_lines_come_as_they_are_read() -> None:
    def lines():  # type: ignore[no-untyped-def]
        yield LOG[5]
        raise AssertionError("read further than needed")

    assert next(digest(lines()))[1].startswith("before training")


def test_colours_are_taken_off() -> None:
    assert without_colours(LOG[1]) == "INFO :      Starting Flower Simulation\n"
