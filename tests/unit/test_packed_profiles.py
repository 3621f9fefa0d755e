"""Profiles packed by gzip: saved by suffix, read by content, found by name, and bounded."""

import gzip
import json
from types import SimpleNamespace

import pytest

from latency_lab import files
from latency_lab.errors import FileFormatError
from latency_lab.profiles import DeviceProfile, load_profile, shipped_profiles, store
from latency_lab.profiles.store import name_of

PROFILE = DeviceProfile.analytic("v100", peak_gflops=125000, bandwidth_gb_s=900)


def test_a_packed_profile_is_the_same_profile_and_the_same_bytes_each_time(tmp_path):
    PROFILE.save(tmp_path / "a.json.gz")
    PROFILE.save(tmp_path / "b.json.gz")
    PROFILE.save(tmp_path / "a.json")
    packed = (tmp_path / "a.json.gz").read_bytes()
    assert packed == (tmp_path / "b.json.gz").read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "a.json").read_bytes()
    assert load_profile(tmp_path / "a.json.gz").digest == PROFILE.digest


def test_content_and_not_the_name_says_whether_a_file_is_packed(tmp_path):
    PROFILE.save(tmp_path / "a.json.gz")
    (tmp_path / "plain.json").write_bytes((tmp_path / "a.json.gz").read_bytes())
    (tmp_path / "packed.json.gz").write_text(json.dumps(PROFILE.to_json()))
    for name in ("plain.json", "packed.json.gz"):
        assert load_profile(tmp_path / name).digest == PROFILE.digest


@pytest.mark.parametrize("name", ["old.json", "new.json.gz"])
def test_both_are_found_by_name_where_profiles_ship(tmp_path, monkeypatch, name):
    PROFILE.save(tmp_path / name)
    (tmp_path / "README.md").write_text("no profile")
    monkeypatch.setattr(store, "resources", SimpleNamespace(files=lambda package: tmp_path))
    assert shipped_profiles() == {name_of(name): tmp_path / name}
    assert load_profile(name_of(name)).name == "v100"


def test_a_missing_packed_profile_is_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileFormatError, match="No such file"):
        load_profile("none.json.gz")


def test_what_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "bomb.json.gz"
    path.write_bytes(gzip.compress(b" " * (files.MAX_UNPACKED_BYTES + 1), 9))
    assert path.stat().st_size < 100_000
    with pytest.raises(FileFormatError, match=r"bomb.json.gz: it unpacks to more than 64 MB"):
        load_profile(path)
    monkeypatch.setattr(files, "MAX_UNPACKED_BYTES", 10)
    path.write_bytes(gzip.compress(b"[1, 2, 3] "))
    assert files.read_json(path, "a list") == [1, 2, 3]


@pytest.mark.parametrize("spoil", [lambda data: data[:-9], lambda data: data[:12] + b"\xff\xff" + data[14:]])
def test_a_damaged_file_is_named(tmp_path, spoil):
    path = tmp_path / "half.json.gz"
    path.write_bytes(spoil(gzip.compress(json.dumps(PROFILE.to_json()).encode())))
    with pytest.raises(FileFormatError, match=r"Cannot read a device profile from .*half.json.gz: "):
        load_profile(path)


def test_what_is_no_text_is_refused(tmp_path):
    path = tmp_path / "binary.json"
    path.write_bytes(b"\x80\x81\x82")
    with pytest.raises(FileFormatError, match="not JSON"):
        load_profile(path)
