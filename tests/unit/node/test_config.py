"""Configuration: one precedence, and every wrong key or value named with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import ConfigError
from p2pcompute.model.peer import Address
from p2pcompute.node.config import PeerConfig, load_config, parse_size


def write(folder: Path, text: str) -> Path:
    file = folder / "config.toml"
    file.write_text(text)
    return file


def test_defaults_without_any_place() -> None:
    config = load_config({}, {}, None)
    assert config.port == limits.PEER_PORT
    assert config.name
    assert config.slots is None
    assert config.lan
    assert config.log_level == "warning"


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = write(tmp_path, 'name = "file"\nport = 1111\nslots = 1\nbeacon_port = 5000\n')
    environ = {"P2PCOMPUTE_NAME": "environment", "P2PCOMPUTE_PORT": "2222"}
    config = load_config({"name": "flag", "slots": None}, environ, file)
    assert (config.name, config.port, config.slots, config.beacon_port) == ("flag", 2222, 1, 5000)
    assert config.log_format == "console"


def test_all_kinds_of_values_from_texts_and_from_toml(tmp_path: Path) -> None:
    environ = {
        "P2PCOMPUTE_LAN": "no",
        "P2PCOMPUTE_RELAY": "no",
        "P2PCOMPUTE_MEMORY_BYTES": "2GiB",
        "P2PCOMPUTE_LABELS": "fast, quiet ,fast",
        "P2PCOMPUTE_BOOTSTRAP": "10.0.0.1:1, [fd00::1]:2, host.example",
        "P2PCOMPUTE_INSTANCE": "3",
        "P2PCOMPUTE_LOG_LEVEL": "DEBUG",
    }
    from_texts = load_config({}, environ, None)
    file = write(
        tmp_path,
        'lan = false\nrelay = false\nmemory_bytes = 2147483648\nlabels = ["fast", "quiet"]\ninstance = 3\nlog_level = "debug"\n'
        'bootstrap = ["10.0.0.1:1", "[fd00::1]:2", "host.example"]\n',
    )
    from_file = load_config({}, {}, file)
    assert from_texts == from_file
    assert not from_file.relay
    assert from_file.labels == ("fast", "quiet")
    assert from_file.bootstrap == (
        Address("10.0.0.1", 1),
        Address("fd00::1", 2),
        Address("host.example", limits.PEER_PORT),
    )


def test_flags_may_repeat() -> None:
    config = load_config({"bootstrap": ("10.0.0.1:1,10.0.0.2:2", "10.0.0.3:3")}, {}, None)
    assert [address.port for address in config.bootstrap] == [1, 2, 3]


@pytest.mark.parametrize(
    ("flags", "environ", "text", "message"),
    [
        ({}, {}, "prot = 1\n", r"config\.toml:prot: unknown configuration key 'prot': did you mean 'port'\?"),
        ({}, {"P2PCOMPUTE_SLOT": "1"}, "", r"environment variable P2PCOMPUTE_SLOT: .*did you mean 'slots'\?"),
        ({"prot": 1}, {}, "", r"--prot: .*did you mean 'port'\?"),
        ({}, {}, "port = 70000\n", r"config\.toml:port is 70000: write a whole number from 0 to 65535"),
        ({}, {"P2PCOMPUTE_YIELD_TO_LOAD": "2"}, "", r"YIELD_TO_LOAD is '2': write a part of the machine's cores"),
        ({"on_battery": "maybe"}, {}, "", r"--on-battery is 'maybe': write pause, run, or how many slots"),
        ({}, {}, 'schedule = ["someday"]\n', r"schedule is \['someday'\]: 'someday' is no window"),
        ({"yield_grace_s": "-1"}, {}, "", r"--yield-grace-s is '-1': write seconds"),
        ({}, {}, "port = true\n", r"config\.toml:port is True"),
        ({}, {"P2PCOMPUTE_PORT": "many"}, "", r"P2PCOMPUTE_PORT is 'many'"),
        ({"memory_bytes": "1KB"}, {}, "", r"--memory-bytes is '1KB': .*at least 32 MiB"),
        ({"memory_bytes": "big"}, {}, "", r"512MB or 2GiB"),
        ({}, {}, 'lan = "perhaps"\n', "write true or false"),
        ({}, {}, 'bootstrap = ["10.0.0.1:port"]\n', "config.toml:bootstrap"),
        ({"bootstrap": "10.0.0.1:0"}, {}, "", "--bootstrap is .*not an address"),
        ({"network": "no spaces please"}, {}, "", "--network is .*letters, digits"),
        ({}, {}, 'log_level = "loud"\n', "debug, info, warning"),
        ({"name": "x" * 300}, {}, "", "at most 256"),
        ({"labels": [str(number) for number in range(40)]}, {}, "", "at most 32 labels"),
        ({"labels": ["x" * 129]}, {}, "", "at most 128 characters"),
        ({"cost_per_hour": "-1"}, {}, "", "a number from 0 up"),
        ({}, {"P2PCOMPUTE_COST_PER_HOUR": "cheap"}, "", "a number from 0 up"),
        ({"performance_tier": "golden"}, {}, "", "basic, standard, premium"),
        ({}, {}, "instance = 0\n", "from 1 to 9999"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    tmp_path: Path, flags: dict[str, object], environ: dict[str, str], text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(flags, environ, write(tmp_path, text))


@pytest.mark.parametrize("content", [b"port = = 1\n", b"\xff\xfe\x00", b"[unfinished\n"])
def test_a_damaged_file_is_an_error_and_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.toml"):
        load_config({}, {}, file)
    assert file.read_bytes() == content


def test_a_missing_file_is_no_error_and_is_not_made(tmp_path: Path) -> None:
    assert load_config({}, {}, tmp_path / "config.toml").port == limits.PEER_PORT
    assert list(tmp_path.iterdir()) == []


def test_variables_that_are_no_keys_are_left_alone() -> None:
    environ = {"P2PCOMPUTE_HOME": "/x", "P2PCOMPUTE_PASSPHRASE": "y", "PATH": "/bin", "P2PCOMPUTE_NAME": ""}
    assert load_config({}, environ, None) == load_config({}, {}, None)


def test_the_list_beside_the_file_adds_addresses_after_the_given_ones(tmp_path: Path) -> None:
    (tmp_path / "bootstrap.txt").write_text("# friends\n10.0.0.2:5\n10.0.0.1:1\n")
    config = load_config({"bootstrap": "10.0.0.1:1"}, {}, tmp_path / "config.toml")
    assert config.bootstrap[:2] == (Address("10.0.0.1", 1), Address("10.0.0.2", 5))


def test_a_damaged_list_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "bootstrap.txt").write_text("10.0.0.2:5\n10.0.0.1:x\n")
    with pytest.raises(ConfigError, match=r"bootstrap\.txt: line 2"):
        load_config({}, {}, tmp_path / "config.toml")


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("1k", 1024), ("512MB", 512 << 20), ("2 GiB", 2 << 30), ("1.5g", 3 << 29), ("1T", 1 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "1 XB", "1e9"])
def test_texts_that_are_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="number of bytes"):
        parse_size(text)


def test_presets_change_single_values() -> None:
    assert PeerConfig.test(name="x").name == "x"
    assert not PeerConfig.test().lan
    assert PeerConfig.lan_only(slots=2).slots == 2
    assert not PeerConfig.wan_only((Address("10.0.0.1", 1),)).lan


def test_when_a_peer_lends_less(tmp_path: Path) -> None:
    config = load_config({}, {}, None)
    assert (config.yield_to_load, config.on_battery, config.yield_grace_s) == (None, 0, 60.0)
    assert config.schedule.is_open(0)
    file = write(tmp_path, 'schedule = ["mon-fri 18:00-08:00", "sat-sun"]\non_battery = 1\nyield_to_load = 0.5\n')
    config = load_config({"yield_grace_s": "5"}, {"P2PCOMPUTE_YIELD_TO_LOAD": "25%"}, file)
    assert (config.yield_to_load, config.on_battery, config.yield_grace_s) == (0.25, 1, 5.0)
    assert config.schedule.texts == ("mon-fri 18:00-08:00", "sat-sun")
    assert load_config({"on_battery": "run", "yield_to_load": "never"}, {}, file).on_battery is None
    assert load_config({"yield_to_load": "never"}, {}, file).yield_to_load is None
