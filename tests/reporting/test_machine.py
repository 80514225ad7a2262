"""What is stored beside figures tells where they are from."""

import os

from flower_split.reporting import describe_machine, installed_versions
from flower_split.reporting.machine import resident_bytes


def test_processor_memory_and_versions_are_told():
    found = describe_machine()
    assert found["cores"] == os.cpu_count()
    assert found["memory_gib"] > 0
    assert found["processor"]
    assert found["versions"] == installed_versions()


def test_the_peak_is_no_less_than_what_is_resident_now():
    assert 0 < resident_bytes() <= resident_bytes(peak=True)
