"""A `.keras` file from an unknown source: one message for any content."""

import json
import zipfile

import pytest

from configs.errors import InputError, ReadError, VoxliftError
from tasks.artifacts.network_file import read_network
from tests.networks import small_restorer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.keras"
    small_restorer().save(path)
    return path


def without(key):
    return lambda config: config.replace(f'"{key}"', f'"no_{key}"')


def inside(**changes):
    def changed(config):
        network = json.loads(config)
        return json.dumps({**network, "config": {**network["config"], **changes}})

    return changed


@pytest.mark.parametrize(
    "change",
    [
        *(lambda _, text=text: text for text in ("[]", "null", '"a"', "7", "{}", "{", "[" * 5000 + "]" * 5000)),
        *(without(key) for key in ("layers", "strides", "inbound_nodes", "kernel_size", "class_name")),
        inside(layers=None),
        inside(layers=[]),
        inside(layers=[[]]),
        inside(layers=[None]),
        inside(layers={}),
        lambda config: json.dumps({**json.loads(config), "config": None}),
    ],
)
def test_an_architecture_that_is_none_is_refused_with_one_message(saved, tmp_path, change):
    path = tmp_path / "hostile.keras"
    with zipfile.ZipFile(saved) as given, zipfile.ZipFile(path, "w") as copy:
        for name in given.namelist():
            data = given.read(name)
            copy.writestr(name, change(data.decode()) if name == "config.json" else data)
    with pytest.raises(VoxliftError, match=r"hostile\.keras|Cannot read the layers|has no|network"):
        read_network(path)


def test_an_architecture_beyond_all_measure_is_not_decompressed(saved, tmp_path):
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(saved) as given, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as copy:
        for name in given.namelist():
            copy.writestr(name, bytes(65 << 20) if name == "config.json" else given.read(name))
    with pytest.raises(InputError, match=r"bomb\.keras: its configuration decompresses to 68157440 bytes"):
        read_network(path)


def test_a_message_does_not_quote_the_file(tmp_path):
    """The name in an archive's directory differs from that before the content, which begins with a long one."""
    path = tmp_path / "damaged.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "x" * 4000)
    content = bytearray(path.read_bytes())
    content[26:28] = (2000).to_bytes(2, "little")  # the length of the name
    path.write_bytes(content)
    with pytest.raises(ReadError, match="not a Keras model") as refused:
        read_network(path)
    assert len(str(refused.value)) < 500
