import argparse
import dataclasses
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from support.checkpoint import build_model, key_violations, load_checkpoint
from support.errors import ContractViolationError, NoDataError, SpecError, ToolError, WrongDataError
from support.known_checkpoints import known_checkpoint
from support.spec import load_spec

SPEC = load_spec("shapes_d0")
KIT = Path(__file__).resolve().parents[1] / SPEC.checkpoint.path
UNPINNED = SPEC.checkpoint.model_copy(update={"sha256": None})
KEY = "class_net.predict.conv_pw.bias"


@pytest.fixture(scope="module")
def kit():
    return load_checkpoint(KIT, SPEC.model, SPEC.checkpoint)


@pytest.fixture
def loaded(tmp_path):
    def load(content, model=SPEC.model):
        torch.save(content, tmp_path / "d0.pth")
        return load_checkpoint(tmp_path / "d0.pth", model, UNPINNED)

    return load


def test_the_kit_is_identified_by_its_hash_and_its_keys(kit):
    assert kit.sha256 == SPEC.checkpoint.sha256
    assert kit.architecture == "tf_efficientdet_d0"
    assert kit.known_as == "the checkpoint the spec pins"
    assert kit.layout == "plain state dict"
    assert len(kit.tensors) == 784
    assert key_violations(kit, SPEC.model) == []


def test_a_checkpoint_nobody_knows_is_shown_as_unknown():
    assert load_checkpoint(KIT, SPEC.model, UNPINNED).known_as == "not a published checkpoint: unknown hash"


@pytest.mark.parametrize("prefix", ["f153e0cf", "f3276ba8", "d0cdbd0a"])
def test_published_checkpoints_are_known_by_their_hash_as_effdet_lists_them(prefix):
    from effdet.config import get_efficientdet_config

    known = known_checkpoint(prefix + 56 * "0")
    assert known.source == get_efficientdet_config(known.architecture).url
    assert known.file_name.endswith(f"-{prefix}.pth")


def test_another_hash_than_the_pinned_one_is_wrong_data():
    pins = SPEC.checkpoint.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(WrongDataError, match=f"shapes_d0.pth has SHA-256 {SPEC.checkpoint.sha256}") as caught:
        load_checkpoint(KIT, SPEC.model, pins)
    assert "0" * 64 in caught.value.required


@pytest.mark.parametrize("wrapper", ["state_dict_ema", "model_ema", "ema", "state_dict", "model", "module"])
def test_a_wrapped_state_dict_is_found(wrapper, kit, loaded):
    checkpoint = loaded({"epoch": 3, wrapper: dict(kit.tensors)})
    assert checkpoint.layout == f"wrapped in {wrapper}"
    assert key_violations(checkpoint, SPEC.model) == []


def test_the_moving_average_is_preferred_and_said_to_be(kit, loaded):
    average = {name: torch.zeros_like(tensor) for name, tensor in kit.tensors.items()}
    checkpoint = loaded({"state_dict": dict(kit.tensors), "state_dict_ema": average})
    assert checkpoint.layout == "wrapped in state_dict_ema, preferred to state_dict"
    assert not checkpoint.tensors[KEY].any()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrapping_modules_are_removed(prefix, kit, loaded):
    checkpoint = loaded({prefix + name: tensor for name, tensor in kit.tensors.items()})
    assert checkpoint.layout == f"plain state dict, prefix {prefix} removed"
    assert key_violations(checkpoint, SPEC.model) == []


def test_a_prefix_on_some_keys_only_is_not_removed(kit, loaded):
    tensors = dict(kit.tensors)
    tensors[f"module.{KEY}"] = tensors.pop(KEY)
    sentences = key_violations(loaded(tensors), SPEC.model)
    assert sentences == [f"missing {KEY} (810,)", f"surplus module.{KEY} (810,)"]


def test_the_options_of_a_training_script_do_no_harm(kit, loaded):
    content = {"state_dict": dict(kit.tensors), "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {}}}
    assert key_violations(loaded(content), SPEC.model) == []


def test_safetensors_are_told_by_their_content(kit, tmp_path):
    save_file(dict(kit.tensors), tmp_path / "d0.pth")
    checkpoint = load_checkpoint(tmp_path / "d0.pth", SPEC.model, UNPINNED)
    assert key_violations(checkpoint, SPEC.model) == []
    assert torch.equal(checkpoint.tensors[KEY], kit.tensors[KEY])


def test_a_torch_file_under_another_name_is_read(tmp_path):
    shutil.copy(KIT, tmp_path / "d0.safetensors")
    assert load_checkpoint(tmp_path / "d0.safetensors", SPEC.model, SPEC.checkpoint).layout == "plain state dict"


def test_a_file_of_torch_before_1_6_is_read(kit, tmp_path):
    torch.save(dict(kit.tensors), tmp_path / "d0.pth", _use_new_zipfile_serialization=False)
    assert key_violations(load_checkpoint(tmp_path / "d0.pth", SPEC.model, UNPINNED), SPEC.model) == []


def test_a_missing_file_is_no_data_and_says_which_option_gives_it(tmp_path):
    with pytest.raises(NoDataError, match=r"there is no checkpoint .*absent\.pth") as caught:
        load_checkpoint(tmp_path / "absent.pth", SPEC.model, UNPINNED)
    assert caught.value.remedy == "--checkpoint=FILE"


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(NoDataError, match="cannot be read"):
        load_checkpoint(tmp_path, SPEC.model, UNPINNED)


@pytest.mark.parametrize("length", [0, 1, 2, 5000, 8_000_000, 15_955_082])
def test_a_truncated_file_is_wrong_data(length, tmp_path):
    (tmp_path / "d0.pth").write_bytes(KIT.read_bytes()[:length])
    with pytest.raises(WrongDataError, match=r"d0\.pth is damaged, truncated or no checkpoint"):
        load_checkpoint(tmp_path / "d0.pth", SPEC.model, UNPINNED)


def test_a_truncated_safetensors_file_is_wrong_data(kit, tmp_path):
    save_file(dict(kit.tensors), tmp_path / "whole")
    (tmp_path / "d0.safetensors").write_bytes((tmp_path / "whole").read_bytes()[:-1])
    with pytest.raises(WrongDataError, match=r"d0\.safetensors is damaged"):
        load_checkpoint(tmp_path / "d0.safetensors", SPEC.model, UNPINNED)


def test_one_flipped_bit_in_a_weight_is_wrong_data(tmp_path):
    data = bytearray(KIT.read_bytes())
    data[8_000_000] ^= 1
    (tmp_path / "d0.pth").write_bytes(data)
    with pytest.raises(WrongDataError, match=r"d0\.pth is damaged.*the checksum of its record .*data/\d+ is wrong"):
        load_checkpoint(tmp_path / "d0.pth", SPEC.model, UNPINNED)


@pytest.mark.parametrize("data", [b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1\n", bytes(100)])
def test_what_a_failed_download_leaves_is_wrong_data(data, tmp_path):
    (tmp_path / "d0.pth").write_bytes(data)
    with pytest.raises(WrongDataError, match=r"d0\.pth is damaged, truncated or no checkpoint"):
        load_checkpoint(tmp_path / "d0.pth", SPEC.model, UNPINNED)


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def write_zip(content, path):
    torch.save(content, path)


def write_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def write_bare_pickle(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("write", [write_zip, write_legacy, write_bare_pickle])
def test_code_in_a_checkpoint_is_refused_and_never_runs(write, tmp_path):
    write({"state_dict": Malicious(tmp_path / "marker")}, tmp_path / "d0.pth")
    with pytest.raises(WrongDataError, match=r"d0\.pth was refused: loading it would execute code \(\w+\.system\)"):
        load_checkpoint(tmp_path / "d0.pth", SPEC.model, UNPINNED)
    assert not (tmp_path / "marker").exists()


def test_a_whole_pickled_module_is_refused(tmp_path):
    torch.save(torch.nn.Conv2d(3, 3, 1), tmp_path / "d0.pth")
    with pytest.raises(WrongDataError, match=r"refused: .*\(torch\.nn\.modules\.conv\.Conv2d\)") as caught:
        load_checkpoint(tmp_path / "d0.pth", SPEC.model, UNPINNED)
    assert "model.state_dict()" in caught.value.remedy


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([1, 2], "holds a list"),
        ({}, "holds an empty dict"),
        ({"state_dict": {}}, "holds an empty dict"),
        ({"epoch": 3}, "the entry 'epoch' is a int"),
        ({"state_dict": {KEY: "text"}}, f"the entry '{KEY}' in state_dict is a str"),
        ({7: torch.zeros(1)}, "the entry 7 is a Tensor"),
        ({KEY: torch.zeros(3).to_sparse()}, f"the entry '{KEY}' is a Tensor"),
    ],
)
def test_a_file_without_a_state_dict_is_wrong_data(content, found, loaded):
    with pytest.raises(WrongDataError, match=rf"d0\.pth:? {found}"):
        loaded(content)


def spoiled(kit, **change):
    return dataclasses.replace(kit, tensors={**kit.tensors, **change})


def without(kit, *names):
    return dataclasses.replace(kit, tensors={name: kit.tensors[name] for name in kit.tensors if name not in names})


def test_a_missing_key_is_named_with_its_shape(kit):
    bad = without(kit, KEY)
    assert key_violations(bad, SPEC.model) == [f"missing {KEY} (810,)"]
    with pytest.raises(ContractViolationError, match=rf"d0\.pth: missing {KEY} \(810,\) \(1 violations in all\)"):
        build_model(bad, SPEC.model)


def test_a_missing_counter_that_strict_loading_would_forgive_is_a_violation(kit):
    name = "backbone.bn1.num_batches_tracked"
    assert key_violations(without(kit, name), SPEC.model) == [f"missing {name} ()"]


def test_a_surplus_key_is_named_with_its_shape(kit):
    bad = spoiled(kit, extra=torch.zeros(2, 3))
    assert key_violations(bad, SPEC.model) == ["surplus extra (2, 3)"]
    with pytest.raises(ContractViolationError, match=r"surplus extra \(2, 3\)"):
        build_model(bad, SPEC.model)


def test_a_wrong_shape_is_named_with_both_shapes(kit):
    assert key_violations(spoiled(kit, **{KEY: torch.zeros(90)}), SPEC.model) == [
        f"{KEY} has shape (90,), required (810,)"
    ]


def test_half_precision_is_a_violation(kit):
    assert key_violations(spoiled(kit, **{KEY: kit.tensors[KEY].half()}), SPEC.model) == [
        f"{KEY} has type torch.float16, required torch.float32"
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_a_violation(value, kit):
    tensor = kit.tensors[KEY].clone()
    tensor[5] = value
    assert key_violations(spoiled(kit, **{KEY: tensor}), SPEC.model) == [
        f"{KEY} has 1 of 810 values that are not finite"
    ]


@pytest.fixture(scope="module")
def other_padding():
    from effdet import EfficientDet
    from effdet.config import get_efficientdet_config

    return EfficientDet(get_efficientdet_config("efficientdet_d0"), pretrained_backbone=False).state_dict()


def test_efficientdet_d0_under_a_tf_spec_is_told_in_words(other_padding, loaded):
    checkpoint = loaded(dict(other_padding))
    assert checkpoint.architecture == "efficientdet_d0"
    first, second, *_ = key_violations(checkpoint, SPEC.model)
    assert first.startswith("the keys are those of efficientdet_d0 (748 tensors), the spec names tf_efficientdet_d0")
    assert second.startswith("missing ")
    with pytest.raises(ContractViolationError, match=r"d0\.pth: the keys are those of efficientdet_d0"):
        build_model(checkpoint, SPEC.model)


def test_efficientdet_d0_is_right_under_its_own_spec(other_padding, loaded):
    own = SPEC.model.model_copy(update={"architecture": "efficientdet_d0"})
    assert key_violations(loaded(dict(other_padding), own), own) == []


def test_keys_of_no_d0_are_of_unknown_architecture(loaded):
    checkpoint = loaded({"weight": torch.zeros(1)})
    assert checkpoint.architecture == "unknown"
    assert len(key_violations(checkpoint, SPEC.model)) == 785


def test_the_adversarial_sibling_has_the_same_keys_and_is_told_by_its_hash(kit):
    sibling = dataclasses.replace(kit, sha256="d0cdbd0a" + 56 * "0")
    assert key_violations(sibling, SPEC.model) == [
        "the hash is that of tf_efficientdet_d0_ap (tf_efficientdet_d0_ap-d0cdbd0a.pth), "
        "the spec names tf_efficientdet_d0"
    ]
    adversarial = SPEC.model.model_copy(update={"architecture": "tf_efficientdet_d0_ap"})
    assert key_violations(sibling, adversarial) == []


def test_the_network_is_loaded_and_in_evaluation_mode(kit):
    network = build_model(kit, SPEC.model)
    assert not any(module.training for module in network.modules())
    state = network.state_dict()
    assert state.keys() == kit.tensors.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in kit.tensors.items())


def test_an_architecture_effdet_does_not_know_is_an_error_of_the_spec(kit):
    with pytest.raises(SpecError, match=r"model\.architecture: effdet knows no 'efficientdet_d99'"):
        key_violations(kit, SPEC.model.model_copy(update={"architecture": "efficientdet_d99"}))


def test_levels_that_the_architecture_does_not_have_are_an_error_of_the_spec(kit):
    with pytest.raises(SpecError, match=r"model.anchor_octaves is 2\n  required: 3"):
        key_violations(kit, SPEC.model.model_copy(update={"anchor_octaves": 2}))


def test_without_torch_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ToolError, match="the checkpoint cannot be read") as caught:
        load_checkpoint(KIT, SPEC.model, UNPINNED)
    assert "pip install '.[export]'" in caught.value.remedy
