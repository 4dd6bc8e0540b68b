import datetime as dt
import re
from collections.abc import Mapping
from copy import deepcopy

import pytest

from support.clauses import CATALOGUE
from support.errors import SpecError, UsageError
from support.spec import SPEC_FOLDER, AcceptanceSpec, Limit, load_spec, spec_path, tomllib

NAMES = ("efficientdet_d0", "shapes_d0")
D0 = load_spec("efficientdet_d0")
TABLES = tomllib.loads((SPEC_FOLDER / "efficientdet_d0.toml").read_text(encoding="utf-8"))
BATCHES = (1, 4, 8, 16, 32, 64)


def toml(value):
    """Write a value as inline TOML; the suite reads TOML and never writes it."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f'"{key}" = {toml(inner)}' for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dt.date):
        return value.isoformat()
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' if isinstance(value, str) else repr(value)


def written(path, tables):
    path.write_text("".join(f'"{key}" = {toml(value)}\n' for key, value in tables.items()), encoding="utf-8")
    return str(path)


def changed(key, value=None):
    """Copy the tables of the D0 spec with one key set, or left out if the value is None."""
    tables = deepcopy(TABLES)
    *outer, last = key.split("/")
    table = tables
    for part in outer:
        table = table[part]
    if value is None:
        del table[last]
    else:
        table[last] = value
    return tables


# -- what is refused ---------------------------------------------------------------------------------------------------

LIMIT = "clauses/coverage/limits/missing"
REFUSED = {
    "an unknown key": ("model/colour", "rgb", r"model\.colour: Extra inputs are not permitted \(found 'rgb'\)"),
    "an unknown table": ("extra", {"a": 1}, r"extra: Extra inputs are not permitted"),
    "an unknown key of a limit": (f"{LIMIT}/tolerance", 1, r"clauses\.coverage\.limits\.missing\.tolerance: Extra"),
    "a missing key": ("graph/opset", None, r"graph\.opset: Field required"),
    "a missing table": ("timeouts", None, r"timeouts: Field required"),
    "a missing clause": ("clauses/coverage", None, r"clauses: missing coverage"),
    "an unknown clause": ("clauses/beauty", TABLES["clauses"]["coverage"], r"clauses: unknown beauty; known are acc"),
    "a missing limit": (LIMIT, None, r"clauses\.coverage\.limits: missing missing"),
    "an unknown limit": (
        "clauses/coverage/limits/lost",
        TABLES["clauses"]["coverage"]["limits"]["missing"],
        r"clauses\.coverage\.limits: unknown lost; known are missing, padded_scored, surplus",
    ),
    "a unit that does not exist": (f"{LIMIT}/unit", "percent", r"limits\.missing\.unit: .* \(found 'percent'\)"),
    "the unit of another quantity": (
        f"{LIMIT}/unit",
        "px",
        r"coverage\.limits\.missing is a max in 'px'; it is measured as a max in 'images'",
    ),
    "the wrong direction": (f"{LIMIT}/direction", "min", r"is a min in 'images'; it is measured as a max in 'images'"),
    "a limit that is no number": (f"{LIMIT}/value", "few", r"limits\.missing\.value: .*valid number.*\(found 'few'\)"),
    "a limit of NaN": (f"{LIMIT}/value", float("nan"), r"limits\.missing\.value: .*finite number"),
    "an infinite limit": (f"{LIMIT}/value", float("inf"), r"limits\.missing\.value: .*finite number"),
    "a limit in two forms": (f"{LIMIT}/reference", 1.0, r"limits\.missing: give either value, or reference and factor"),
    "a limit without a number": (f"{LIMIT}/value", None, r"limits\.missing: give either value, or reference and fac"),
    "a reference without a factor": (
        "clauses/accuracy_guide_drop/limits/ap/factor",
        None,
        r"accuracy_guide_drop\.limits\.ap: give either value, or reference and factor together",
    ),
    "a limit of our own from nowhere": (f"{LIMIT}/distribution", None, r"limits\.missing: .* must name the distrib"),
    "a limit without a source": (f"{LIMIT}/source", None, r"limits\.missing\.source: Field required"),
    "an empty source": (f"{LIMIT}/source", "", r"limits\.missing\.source: .*at least 1 character \(found ''\)"),
    "a date that is none": (f"{LIMIT}/date", "yesterday", r"limits\.missing\.date: .*\(found 'yesterday'\)"),
    "a rounding to a hundred digits": (f"{LIMIT}/rounding", 100, r"limits\.missing\.rounding: .*\(found 100\)"),
    "a missing limit of a rung": ("rungs/first/different", None, r"rungs\.first: missing different"),
    "an unknown limit of a rung": (
        "rungs/second/ap",
        TABLES["rungs"]["second"]["different"],
        r"rungs\.second: unknown ap; known are different, ruined_images",
    ),
    "a rung that wants much": (
        "rungs/first/different/direction",
        "min",
        r"rungs\.first\.different is a min in 'fraction'; it is measured as a max in 'fraction'",
    ),
    "rungs that cost as much as the pass": ("rungs/share", 1, r"rungs\.share: .*less than 1"),
    "a clause that no mode requires": ("clauses/coverage/modes", [], r"clauses\.coverage\.modes: .*at least 1 item"),
    "an unknown mode": ("clauses/coverage/modes", ["built"], r"clauses\.coverage\.modes\.0: .*\(found 'built'\)"),
    "a misspelt chip": (
        "clauses/throughput_vs_310/chips",
        ["310P4"],
        r"clauses\.throughput_vs_310\.chips: unknown 310P4; .* 310P3",
    ),
    "an unknown baseline": (
        "throughput/baseline_310",
        "a100",
        r"throughput\.baseline_310: no baseline is named 'a100'; known are 310-cann5, .*t4-ort",
    ),
    "an unknown baseline of a chip": (
        "throughput/same_chip/T4",
        "t4-trt",
        r"throughput\.same_chip\.T4: no baseline is named 't4-trt'",
    ),
    "the baseline of another chip": (
        "throughput/same_chip/310P3",
        "310-cann5",
        r"throughput\.same_chip\.310P3: baseline '310-cann5' is of a 310, not of a 310P3",
    ),
    "a T4 baseline of a 310": (
        "throughput/baseline_t4",
        "310-cann5",
        r"throughput\.baseline_t4: baseline '310-cann5' is of a 310, not of a T4",
    ),
    "a batch without a published figure": (
        "baselines/t4-ort/images_per_second",
        {"1": 9.9, "4": 12.3, "8": 12.3, "16": 12.4},
        r"baselines\.t4-ort\.images_per_second: no figure for batch \[32, 64\]",
    ),
    "a throughput of 0": ("baselines/t4-ort/images_per_second/1", 0, r"images_per_second\.1: .*greater than 0"),
    "no batch size": ("batch_sizes", [], r"batch_sizes: .*at least 1 item"),
    "a batch size of 0": ("batch_sizes", [0, 8], r"batch_sizes\.0: .*greater than 0 \(found 0\)"),
    "batch sizes out of order": ("batch_sizes", [8, 4], r"batch_sizes: \[8, 4\] must be ascending and without repeats"),
    "repeated batch sizes": ("batch_sizes", [4, 8, 8], r"batch_sizes: \[4, 8, 8\] must be ascending and without rep"),
    "a ladder batch that is not run": ("accuracy/ladder_batch", 2, r"ladder_batch: 2 is not one of batch_sizes"),
    "a mean in grey levels": ("model/mean", [123.7, 116.3, 103.5], r"model\.mean: mean and std are fractions of 1"),
    "a std of 0": ("model/std", [0.0, 0.2, 0.2], r"model\.std\.0: .*greater than 0"),
    "levels upside down": ("model/min_level", 8, r"model: min_level 8 is above max_level 7"),
    "an odd image size": ("model/image_size", 500, r"model\.image_size: .*multiple of 64 \(found 500\)"),
    "an IoU of 1": ("model/iou_threshold", 1.0, r"model\.iou_threshold: .*less than 1"),
    "another family": ("model/family", "yolo", r"model\.family: .*'effdet' \(found 'yolo'\)"),
    "half a hash": ("checkpoint/sha256", "f3276ba8", r"checkpoint\.sha256: .*\(found 'f3276ba8'\)"),
    "a confidence of 1": ("throughput/confidence", 1.0, r"throughput\.confidence: .*less than 1"),
    "a budget of half": ("throughput/error_budget", 0.5, r"throughput\.error_budget: .*less than 0\.5"),
    "no look": ("throughput/looks", 0, r"throughput\.looks: .*greater than 0"),
    "one block": ("throughput/blocks", 1, r"throughput\.blocks: .*greater than or equal to 2"),
    "a warm-up that ends before it may": ("throughput/warm_up_most", 2, "warm_up_most 2 is below warm_up_calls 3"),
    "a plausible throughput without a source": (
        "throughput/plausible/source",
        None,
        r"plausible\.source: Field required",
    ),
    "a share of all detections": ("throughput/mixed_repeat_share", 1.0, r"mixed_repeat_share: .*less than 1"),
    "no time to compile": ("timeouts/compile", 0, r"timeouts\.compile: .*greater than 0"),
    "no time to load": ("timeouts/load", None, r"timeouts\.load: Field required"),
    "no time at all": ("timeouts/infer_call", 0, r"timeouts\.infer_call: .*greater than 0"),
}


@pytest.mark.parametrize(("key", "value", "message"), REFUSED.values(), ids=REFUSED)
def test_a_spec_that_cannot_be_meant_is_refused_with_file_and_key(tmp_path, key, value, message):
    path = written(tmp_path / "mine.toml", changed(key, value))
    with pytest.raises(SpecError, match=rf"^{re.escape(path)}: .*{message}"):
        load_spec(path)


def test_the_tables_those_specs_were_made_from_are_a_spec(tmp_path):
    assert load_spec(written(tmp_path / "mine.toml", TABLES)).digest == D0.digest


def test_five_faults_are_named_at_once(tmp_path):
    tables = {key: TABLES[key] for key in ("name", "batch_sizes", "model")}
    with pytest.raises(SpecError, match="title: Field required; version: Field required; published: Field required"):
        load_spec(written(tmp_path / "mine.toml", tables))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name = ", "not a readable TOML file: Invalid value"),
        (b'{"name": "json"}', "not a readable TOML file: "),
        (b"name = 'caf\xe9'", "not a readable TOML file: .*utf-8"),
        (b"name = 'a'\nname = 'b'", "not a readable TOML file: Cannot overwrite a value"),
    ],
)
def test_a_file_that_is_not_toml_is_named(tmp_path, content, message):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=rf"^{re.escape(str(path))}: {message}"):
        load_spec(str(path))


@pytest.mark.parametrize("name", ["yolo", "missing.toml", "../efficientdet_d0"])
def test_an_unknown_spec_is_answered_with_the_known_ones(name):
    with pytest.raises(SpecError, match=rf"no spec '{re.escape(name)}'\n.* one of: efficientdet_d0, shapes_d0"):
        load_spec(name)


def test_a_spec_error_is_a_mistake_in_usage():
    assert issubclass(SpecError, UsageError)


# -- extending ---------------------------------------------------------------------------------------------------------


def extending(tmp_path, text, base="efficientdet_d0"):
    path = tmp_path / "mine.toml"
    path.write_text(f'extends = "{base}"\nname = "mine"\n{text}', encoding="utf-8")
    return str(path)


def test_a_spec_takes_what_it_does_not_say_from_the_one_it_extends(tmp_path):
    spec = load_spec(extending(tmp_path, "[dataset]\nimage_count = 7"))
    assert spec.name == "mine"
    assert spec.dataset.image_count == 7
    assert spec.dataset.root == D0.dataset.root
    assert spec.clauses == D0.clauses


def test_a_spec_can_extend_one_beside_it_or_one_that_extends_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    (tmp_path / "base.toml").write_text('extends = "shapes_d0"\ntitle = "base"\n', encoding="utf-8")
    spec = load_spec(extending(tmp_path, "", base="base.toml"))
    assert (spec.name, spec.title, spec.dataset.image_count) == ("mine", "base", 133)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("yolo", "extends: no spec 'yolo'"),
        ("missing.toml", r"extends: no spec '.*missing\.toml'"),
        ("mine.toml", "extends: the specs extend each other in a circle"),
    ],
)
def test_a_base_that_is_not_there_is_named_with_the_file_that_wants_it(tmp_path, base, message):
    path = extending(tmp_path, "", base=base)
    with pytest.raises(SpecError, match=f"^{re.escape(path)}: {message}"):
        load_spec(path)


def test_specs_that_extend_each_other_are_refused(tmp_path):
    (tmp_path / "a.toml").write_text('extends = "b.toml"', encoding="utf-8")
    (tmp_path / "b.toml").write_text('extends = "a.toml"', encoding="utf-8")
    with pytest.raises(SpecError, match=r"a\.toml: extends: the specs extend each other in a circle"):
        load_spec(str(tmp_path / "a.toml"))


def test_a_base_must_be_a_name(tmp_path):
    with pytest.raises(SpecError, match=r"mine\.toml: extends: \['shapes_d0'\] must be the name of a spec"):
        load_spec(written(tmp_path / "mine.toml", {"extends": ["shapes_d0"]}))


@pytest.mark.parametrize("half", ["value = 30.0", 'source = "own"', "reference = 30.0\nfactor = 0.9"])
def test_half_a_limit_does_not_inherit_the_other_half(tmp_path, half):
    with pytest.raises(SpecError, match=r"clauses\.accuracy_guide_floor\.limits\.ap\.unit: Field required"):
        load_spec(extending(tmp_path, f"[clauses.accuracy_guide_floor.limits.ap]\n{half}"))


def test_a_new_limit_keeps_nothing_of_the_old_one(tmp_path):
    text = '[clauses.accuracy_guide_floor.limits.ap]\nvalue = 30\nunit = "AP points"\ndirection = "min"\n'
    spec = load_spec(extending(tmp_path, text + 'source = "mine"\ndate = 2026-01-01'))
    limit = spec.clauses["accuracy_guide_floor"].limits["ap"]
    assert (limit.number, limit.rounding, limit.source) == (30, None, "mine")


def test_half_a_baseline_does_not_inherit_the_other_half(tmp_path):
    with pytest.raises(SpecError, match=r"baselines\.t4-ort\.chip: Field required"):
        load_spec(extending(tmp_path, "[baselines.t4-ort]\nimages_per_second = { 1 = 2, 4 = 2, 8 = 2, 16 = 2 }"))


# -- digest ------------------------------------------------------------------------------------------------------------


def test_the_digest_does_not_depend_on_formatting_and_order(tmp_path):
    backwards = dict(reversed(TABLES.items()))
    backwards["clauses"] = dict(reversed(TABLES["clauses"].items()))
    backwards["timeouts"] = dict(reversed(TABLES["timeouts"].items()))
    assert load_spec(written(tmp_path / "mine.toml", backwards)).digest == D0.digest
    assert re.fullmatch("[0-9a-f]{64}", D0.digest)


@pytest.mark.parametrize(
    ("key", "value"),
    [(f"{LIMIT}/value", 1), ("model/iou_threshold", 0.51), ("version", "1.0.1"), ("batch_sizes", [1, 8])],
)
def test_the_digest_changes_with_every_content(tmp_path, key, value):
    assert load_spec(written(tmp_path / "mine.toml", changed(key, value))).digest != D0.digest


# -- the specs of this suite -------------------------------------------------------------------------------------------


def test_every_spec_of_the_suite_is_known_by_its_name():
    assert sorted(path.stem for path in SPEC_FOLDER.glob("*.toml")) == sorted(NAMES)
    assert {name: load_spec(name).name for name in NAMES} == {name: name for name in NAMES}
    assert spec_path(str(SPEC_FOLDER / "shapes_d0.toml")) == spec_path("shapes_d0")


@pytest.mark.parametrize("name", NAMES)
def test_a_limit_of_our_own_tells_the_clean_runs_it_comes_from(name):
    limits = {
        f"{clause}.{key}": limit
        for clause, rule in load_spec(name).clauses.items()
        for key, limit in rule.limits.items()
        if limit.source == "own"
    }
    assert [key for key, limit in limits.items() if len(limit.distribution) < 20] == []


PUBLISHED = {  # guide, section 7.3; its reworks of 2022-11-28 (310P3) and 2023-08-02 (310B1)
    "310-cann5": ("310", (47.256, 53.564, 54.116, 54.761, 54.001, 54.136)),
    "310P-cann5": ("310P", (67.074, 135.378, 143.944, 145.109, 142.913, 143.258)),
    "t4-ort": ("T4", (9.945, 12.284, 12.332, 12.377, 12.388, 12.476)),
    "310P3-cann6": ("310P3", (124, 260, 256, 250, 241, 238)),
    "310B1": ("310B1", (71.21, 64.3, 64.42, 64.75, 64.64, 54.31)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tables_are_those_of_the_guide(name):
    chip, figures = PUBLISHED[name]
    baseline = D0.baselines[name]
    assert baseline.chip == chip
    assert baseline.images_per_second == dict(zip(BATCHES, figures, strict=True))
    assert baseline.best == max(figures)


def test_the_rules_are_those_of_the_guide():
    def number(clause, key):
        return D0.clauses[clause].limits[key].number

    assert set(D0.baselines) == set(PUBLISHED)
    assert D0.batch_sizes == BATCHES
    assert D0.published
    assert D0.accuracy.quoted_ap == 33.6
    assert (number("accuracy_guide_floor", "ap"), D0.clauses["accuracy_guide_floor"].limits["ap"].rounding) == (33.4, 1)
    assert number("accuracy_guide_drop", "ap") == pytest.approx(33.264, abs=1e-12)
    assert number("accuracy_measured_drop", "ap_ratio") == 0.99
    for rule in ("throughput_vs_{}", "throughput_best_vs_{}"):
        assert number(rule.format("310"), "ratio") == 1.2
        assert number(rule.format("t4"), "ratio") == 1.6
    assert number("throughput_same_chip", "ratio") == 0.95
    assert (D0.dataset.image_count, D0.dataset.category_count) == (5000, 80)
    assert D0.graph.opset == 11


def test_the_compiler_keeps_in_float32_what_the_list_of_the_guide_names():
    assert D0.atc.kept_types == ("ReduceMeanD",)
    assert D0.atc.model_copy(update={"modify_mixlist": {}}).kept_types == ()


@pytest.mark.parametrize(
    ("mode", "precision"),
    [
        ("allow_mix_precision", "mixed"),
        ("force_fp16", "mixed"),
        ("allow_fp32_to_fp16", "mixed"),
        ("force_fp32", "mixed"),
        ("cube_fp16in_fp32out", "mixed"),
        ("must_keep_origin_dtype", "full"),
    ],
)
def test_a_mode_that_may_lower_an_operator_is_mixed_precision(mode, precision):
    assert D0.atc.model_copy(update={"precision_mode": mode}).precision == precision


def test_limits_of_mixed_precision_are_wider_than_those_of_full_precision():
    stage = D0.clauses["stage_tensors"].limits
    for name in ("logit_error", "box_error"):
        assert stage[name].number < stage[f"mixed_{name}"].number < stage[f"padded_{name}"].number
    rules = D0.throughput
    assert rules.repeat_score_tolerance < rules.mixed_repeat_score_tolerance
    assert rules.repeat_box_tolerance < rules.mixed_repeat_box_tolerance


def test_the_kit_is_no_release_and_keeps_every_rule_that_is_not_its_own():
    kit = load_spec("shapes_d0")
    assert not kit.published
    assert kit.checkpoint.sha256
    own = {name for name in CATALOGUE if kit.clauses[name] != D0.clauses[name]}
    assert own == {"dataset_pins", "reference_ap", "accuracy_guide_floor", "accuracy_guide_drop"}
    assert kit.baselines == D0.baselines
    assert kit.model == D0.model


def test_a_limit_as_part_of_a_reference_is_their_product():
    limit = Limit(reference=50, factor=0.9, unit="ratio", direction="min", source="a test", date="2026-01-01")
    assert limit.number == 45


# -- what a run must measure -------------------------------------------------------------------------------------------

GATE = frozenset({"gate", "throughput"})


def required(spec: AcceptanceSpec = D0, mode="build", chip="310P3", scopes=GATE, **more):
    return spec.required(mode=mode, chip=chip, scopes=scopes, **more)


def names(pairs):
    return {name for name, _ in pairs}


def test_a_built_candidate_must_pass_every_clause_that_compares_with_no_saved_run():
    assert names(required()) == set(CATALOGUE) - {"throughput_regression"}
    assert names(required(comparing=True)) == set(CATALOGUE)


def test_clauses_by_batch_are_required_at_every_batch_size_and_others_once():
    found = required(comparing=True)
    for name, kind in CATALOGUE.items():
        assert [batch for clause, batch in found if clause == name] == (list(BATCHES) if kind.per_batch else [None])


@pytest.mark.parametrize(
    ("mode", "absent"),
    [
        (
            "onnx",
            "checkpoint_contract weights_account simplified_equals_raw modified_edit pad_edit stage_ap reference_ap",
        ),
        (
            "om",
            "checkpoint_contract graph_contract weights_account simplified_equals_raw modified_edit pad_edit stage_ap "
            "reference_ap",
        ),
        (
            "results",
            "checkpoint_contract input_contract graph_contract weights_account simplified_equals_raw modified_edit "
            "pad_edit om_contract stage_tensors stage_ap reference_ap batch_invariance timed_outputs "
            "throughput_fresh_inputs",
        ),
    ],
)
def test_a_prebuilt_candidate_is_not_asked_for_what_cannot_be_seen_in_it(mode, absent):
    assert set(CATALOGUE) - names(required(mode=mode, comparing=True)) == set(absent.split())


@pytest.mark.parametrize(
    ("chip", "rules"),
    [
        ("cpu", "timed_outputs throughput_fresh_inputs"),
        ("T4", "timed_outputs throughput_fresh_inputs throughput_same_chip"),
        ("310", "timed_outputs throughput_fresh_inputs throughput_same_chip"),
        ("310B1", "timed_outputs throughput_fresh_inputs throughput_same_chip"),
        *(
            (
                chip,
                "timed_outputs throughput_fresh_inputs throughput_same_chip throughput_vs_310 throughput_vs_t4 "
                "throughput_best_vs_310 throughput_best_vs_t4",
            )
            for chip in ("310P", "310P3")
        ),
    ],
)
def test_throughput_rules_depend_on_the_chip(chip, rules):
    assert names(required(chip=chip, scopes=frozenset({"throughput"}))) == set(rules.split())


def test_accuracy_rules_do_not_depend_on_the_chip():
    gates = {
        tuple(rule for rule in required(chip=chip, scopes=frozenset({"gate"})) if rule[0] != "om_contract")
        for chip in ("cpu", "T4", "310P3")
    }
    assert len(gates) == 1
    assert all(CATALOGUE[name].scope == "gate" for name, _ in gates.pop())


@pytest.mark.parametrize(("chip", "compiled"), [("cpu", False), ("T4", False), ("310", True), ("310P3", True)])
def test_only_where_a_model_is_compiled_must_it_be_the_right_one(chip, compiled):
    assert ("om_contract" in names(required(chip=chip))) == compiled


def test_no_scope_requires_nothing():
    assert required(scopes=frozenset()) == ()
