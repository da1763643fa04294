import pytest
import yaml

from configs.errors import ConfigError
from configs.load import flatten, load_config, preset_names, resolved_yaml
from configs.schema import RunConfig


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads(name):
    assert isinstance(load_config(name), RunConfig)


def test_a_resolved_configuration_reads_back_to_the_same(tmp_path):
    config = load_config("demo", ["training.steps=7", "data.volumes=[a.nii.gz]"])
    path = tmp_path / "resolved.yaml"
    path.write_text(resolved_yaml(config))
    assert load_config(path) == config


def test_an_override_changes_its_key_alone():
    changed, preset = load_config("demo", ["training.learning_rate=1e-4"]), load_config("demo")
    assert changed.training.learning_rate == 1e-4
    assert changed.model_copy(update={"training": preset.training}) == preset


def test_off_is_a_word_though_yaml_reads_it_as_false():
    config = load_config("demo", ["training.mixed_precision=off"])
    assert config.training.mixed_precision == "off"


def test_flatten_names_every_leaf():
    leaves = flatten(load_config("demo"))
    assert leaves["training.steps"] == str(load_config("demo").training.steps)
    assert leaves["degradation.name"] == "iso2x"


BAD = [
    ("training: {stpes: 5}", "no key training.stpes. Did you mean training.steps?"),
    (
        "network: {stages: [{filters: 1, kernel: [4, 4, 4], strides: [2, 2, 2]}]}",
        "no key network.stages.0.kernel. Did you mean network.stages.0.kernel_size?",
    ),
    ("trainning: {}", "no key trainning. Did you mean training?"),
    ("training: {steps: 0}", "training.steps"),
    ("training: {steps: many}", "received 'many'"),
    (
        "training: {batch_size: 3, replicas: 2}",
        "batch_size must divide by the replicas, received 3 over 2: take a batch_size of 4",
    ),
    ("training: {patch: [16, 112, 100]}", "received 100 along width: take 112"),
    ("data: {held_out: {start: 0.9, stop: 0.2}}", "start must be below stop"),
    ("degradation: iso3x", "no such degradation"),
    ("- a list", "the file must hold sections"),
    ("a: [", "it is not YAML"),
    ("training: !!python/object/apply:os.system ['true']", "it is not YAML"),
    (f"training: {{seed: {'9' * 5000}}}", "it is not YAML (Exceeds the limit"),
    ("training: {seed: 9999999999}", "training.seed"),
    ("training: {learning_rate: .inf}", "finite number"),
    ("data: {volumes: " + "[" * 5000 + "]" * 5000 + "}", "it is not YAML"),
    (
        "data: {volumes: ["
        + ", ".join(f"&a{n} [{', '.join([f'*a{n - 1}' if n else '1'] * 9)}]" for n in range(9))
        + "]}",
        "its aliases stand for more than 100000 values",
    ),
    ("data: &a {volumes: [*a]}", "its aliases stand for more than 100000 values"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_a_wrong_configuration_gets_one_message(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    content = text if "degradation" in text or text.startswith(("-", "a:")) else f"degradation: iso2x\n{text}"
    path.write_text(content)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert message in str(error.value)
    assert "run.yaml" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "override", ["steps", "=3", "training.steps.deep=3", "training.steps=[", "degradation.name.x=1"]
)
def test_a_wrong_override_gets_one_message(override):
    with pytest.raises(ConfigError, match=r"Cannot apply|Cannot use"):
        load_config("demo", [override])


def test_a_missing_file_names_the_presets(tmp_path):
    with pytest.raises(ConfigError, match="demo"):
        load_config(tmp_path / "absent.yaml")


def test_every_preset_registers_its_models_under_a_name_of_its_own():
    names = [load_config(name).tracking.registered_model for name in preset_names()]
    assert len({*names, RunConfig(degradation="iso2x").tracking.registered_model}) == len(names) + 1


def test_presets_are_plain_yaml():
    for name in preset_names():
        assert yaml.safe_load(resolved_yaml(load_config(name))) is not None


def test_the_earlier_name_of_a_loss_is_accepted(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("degradation: iso2x\ntraining: {losses: {l2: 0.5, unseen: 0.5}}")
    assert load_config(path).training.losses == {"l2": 0.5, "null_space": 0.5}
