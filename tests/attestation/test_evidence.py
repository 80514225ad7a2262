"""Evidence is bounded, its binding depends on all it should, and plug-ins are found by name."""

import pytest
from cryptography import x509
from outside_package import installed

from flower_split.attestation import Evidence, attester_of, binding_of, verifier_of
from flower_split.errors import ConfigError, WireError
from flower_split.tls import ServerTls


def certificate():
    return x509.load_pem_x509_certificate(ServerTls.ephemeral("localhost").certificate)


def test_a_binding_is_of_one_nonce_and_one_key():
    own, other = certificate(), certificate()
    found = {
        binding_of(nonce, one) for nonce in (b"a" * 32, b"b" * 32) for one in (own, own, other)
    }
    assert len(found) == 4 and {len(one) for one in found} == {32}


@pytest.mark.parametrize(
    ("name", "data"),
    [("", b""), ("x" * 65, b""), ("ü", b""), ("a\nb", b""), ("a", bytes(2**20 + 1))],
)
def test_evidence_is_bounded(name, data):
    with pytest.raises(WireError, match="evidence"):
        Evidence(format=name, data=data)


def test_plug_ins_are_found_by_name(tmp_path):
    assert attester_of("") is None and verifier_of("") is None
    with pytest.raises(ConfigError, match=r"trunk-verifier 'none' is in no installed package"):
        verifier_of("none")
    source = "def made(binding):\n    return binding\n\nnothing = 3\n"
    entries = {"made": "made", "nothing": "nothing"}
    with installed(
        tmp_path, "makes_evidence", "flower_split.attesters", entries, source
    ) as package:
        assert attester_of("made") is package.made
        with pytest.raises(ConfigError, match="cannot be called"):
            attester_of("nothing")
        with pytest.raises(ConfigError, match="there are: made, nothing"):
            attester_of("other")
