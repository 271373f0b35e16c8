"""SHA-256 of a file, against the digest of FIPS 180-2's example."""

from rlhf_marl.files.hashing import sha256_of


def test_sha256_of_abc(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
