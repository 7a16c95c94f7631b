"""What is stored is trusted by the version of the code that made it: outputs may change only with that version.

`data/output_versions.json` holds, for each maker and version, a few outputs on a fixed input. Where outputs change on
purpose, raise the maker's version (the message names the constant), then run

    PRMKD_WRITE_VERSIONS=1 python -m pytest tests/test_output_versions.py

which adds the new version's outputs to the file.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import tiny_teachers
import torch
from PIL import Image
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from recbole_prmkd.data import encoder, images
from recbole_prmkd.data.encoder import DEFAULT_ENCODER
from recbole_prmkd.data.examples import Examples
from recbole_prmkd.data.split import load_split
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.recbole_host.keys import teacher_settings
from recbole_prmkd.storage import encoding_jobs
from recbole_prmkd.teacher_cache import build, scores, top_items, vectors
from recbole_prmkd.teachers import TEACHERS, Teacher, content, fit
from recbole_prmkd.teachers.data import teacher_config, teacher_data

FILE = Path(__file__).parent / "data" / "output_versions.json"
COMMAND = "PRMKD_WRITE_VERSIONS=1 python -m pytest tests/test_output_versions.py"
WRITING = "PRMKD_WRITE_VERSIONS" in os.environ
CPU = {"device": torch.device("cpu"), "kd_encode_precision": "float32"}


def check(maker: str, version: str, constant: str, outputs, *, rel: float = 1e-3) -> None:
    """The outputs are those that the file has for this version.

    Args:
        constant: what to raise, as the message names it.
        outputs: any number of numbers; a few hundred at most.
        rel: relative tolerance; machines differ in their last bits.
    """
    stored = json.loads(FILE.read_text(encoding="utf-8"))
    found = [float(f"{number:.4g}") for number in np.concatenate([np.ravel(part) for part in outputs])]
    known = stored.get(maker, {})
    if version not in known and WRITING:
        stored[maker] = {**known, version: found}
        lines = (f" {json.dumps(name)}: {json.dumps(of_it)}" for name, of_it in sorted(stored.items()))
        FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        return
    if version not in known:
        pytest.fail(f"{FILE.name} has no outputs of {maker} {version}: run {COMMAND}")
    if len(found) != len(known[version]) or not np.allclose(found, known[version], rtol=rel, atol=1e-4):
        pytest.fail(f"The outputs of {maker} changed and its version did not: raise {constant}, then run {COMMAND}")


def job(folder, number: int, dtype=np.float32):
    return encoding_jobs.resumable(folder, "outputs", {}, number, label="outputs", dtype=dtype)


def test_text_encoding(minilm, tmp_path):
    texts = ["A red pen. New.", "", "Café à la crème, 1.2 l!", "word " * 40, "A red pen. New."]
    config = {**CPU, "kd_text_encoder": DEFAULT_ENCODER, "kd_text_max_tokens": 16, "dataset": "none"}
    with job(tmp_path, len(texts)) as work:
        vectors = encoder.encode(texts, config, work)
    check("text encoding", encoder.VERSION, "VERSION in recbole_prmkd/data/encoder.py", [vectors[:, :6]])


def test_image_encoding(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    model.load_state_dict({name: torch.from_numpy(array) for name, array in reference.filled(shapes, 5).items()})
    model.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    files = [tmp_path / f"{n}.png" for n in range(2)]
    for n, file in enumerate(files):
        Image.fromarray(np.random.RandomState(n).randint(0, 255, (40, 30, 3)).astype(np.uint8)).save(file)
    with job(tmp_path, len(files)) as work:
        vectors = images.encode_images(files, tmp_path, CPU, work)
    check("image encoding", images.VERSION, "VERSION in recbole_prmkd/data/images.py", [vectors])


def vectors_teacher(folder) -> Teacher:
    """A `Vectors` teacher of users u1 to u3 and the items of the reference."""
    items = np.array([f"i{n}" for n in range(1, reference.ITEMS)])
    tokens = {"user_id": np.array(["[PAD]", "u1", "u2", "u3"]), "item_id": np.array(["[PAD]", *items])}
    random = np.random.RandomState(6)
    np.savez(folder / "items.npz", item_id=items[:-1], feat=random.normal(size=(len(items) - 1, 4)))
    np.savez(folder / "users.npz", user_id=np.array(["u3", "u1"]), feat=random.normal(size=(2, 4)))
    files = {"items": folder / "items.npz", "users": folder / "users.npz", "rows": None}
    config = {**teacher_settings("Vectors", {}), **tiny_teachers.FIELDS, **files, "train_stage": None}
    dataset = SimpleNamespace(num=lambda field: len(tokens[field]), field2id_token=tokens)
    return TEACHERS["Vectors"](config, dataset).eval()


def control(kind) -> Teacher:
    """A teacher that knows nothing, of 6 numbers an item."""
    config = {**teacher_settings(kind, {}), **tiny_teachers.FIELDS, "embedding_size": 6, "seed": 3, "train_stage": None}
    return TEACHERS[kind](config, SimpleNamespace(num=lambda field: reference.ITEMS))


def four_users() -> Examples:
    """The training examples of four users."""
    lengths, n_items = [4, 6, 5, 7], reference.ITEMS
    items = torch.from_numpy(np.random.RandomState(9).randint(1, n_items, sum(lengths) + 4))
    blocks = [(sum(lengths[:user]) + user, length) for user, length in enumerate(lengths)]
    examples = [(user + 1, start, start + stop) for user, (start, n) in enumerate(blocks) for stop in range(1, n + 1)]
    users, start, stop = torch.tensor(examples).T
    return Examples(users, items[stop], start, stop, items)


def fitted_teacher(kind):
    """A `Linear` or `Content` teacher fitted on four users' histories."""
    own = {"train_stage": None, "seed": 1, "temperature": None}
    config = {**teacher_settings(kind, {}), **tiny_teachers.FIELDS, **own}
    model = TEACHERS[kind](config, SimpleNamespace(num=lambda field: reference.ITEMS))
    model.solve(SimpleNamespace(fit=four_users()))
    return model.eval()


def content_teacher(monkeypatch):
    text = torch.from_numpy(np.random.RandomState(8).normal(size=(reference.ITEMS, 5)).astype(np.float32))
    text[[0, 3]] = 0
    monkeypatch.setattr(content, "item_text_vectors", lambda config, dataset: text)
    return fitted_teacher("Content")


@pytest.mark.parametrize("kind", TEACHERS)
def test_teacher(kind, tmp_path, monkeypatch):
    makers = {
        "UniSRec": lambda: (tiny_teachers.unisrec("transductive"), tiny_teachers.batch()),
        "UniM2Rec": lambda: (tiny_teachers.unim2rec(), tiny_teachers.batch()),
        "Recformer": lambda: (tiny_teachers.recformer(tmp_path), tiny_teachers.text_batch()),
        "Linear": lambda: (fitted_teacher("Linear"), tiny_teachers.batch()),
        "Content": lambda: (content_teacher(monkeypatch), tiny_teachers.batch()),
        "Uniform": lambda: (control("Uniform"), tiny_teachers.batch()),
        "Noise": lambda: (control("Noise"), tiny_teachers.batch()),
        "Vectors": lambda: (vectors_teacher(tmp_path), tiny_teachers.batch() | {"user_id": torch.tensor([1, 2, 3])}),
    }
    model, batch = makers[kind]()
    with torch.no_grad():
        items = model.encode_items()
        outputs = [items, model.encode_batch(batch, items), model.covered_items()]
    if model.learns:
        loss = model.calculate_loss(batch)
        loss.backward()
        gradients = [p.grad.norm().item() for _, p in sorted(model.named_parameters()) if p.grad is not None]
        outputs += [loss.detach(), torch.tensor(sum(gradients))]
    file = f"{type(model).__module__.replace('.', '/')}.py"
    check(kind, model.version, f"{kind}.version in {file}", outputs)


@pytest.fixture
def tiny(cpu_settings, minilm, tmp_path):
    """Student's configuration, split and canonical data of the small data set, with folders of their own."""
    folders = {"kd_cache_dir": str(tmp_path / "cache"), "kd_teacher_dir": str(tmp_path / "teachers")}
    config = load_config("LightGCN", "tiny", config_dict=cpu_settings(kd="mean", **folders, kd_unisrec_epochs=1))
    split = load_split(config)
    return config, split, teacher_data(split, config["seed"])


def test_fine_tuning(tiny):
    """An epoch from random weights is exact on no two machines: item vectors, with room."""
    config, _, data = tiny
    teacher = fit.fit_or_load("UniSRec", config, data)
    outputs = [teacher.model.encode_items()[::5, :4]]
    version = f"{fit.VERSION} with UniSRec {teacher.model.version} and text encoding {encoder.VERSION}"
    check("fine-tuning", version, "VERSION in recbole_prmkd/teachers/fit.py", outputs, rel=2e-2)


class MeanOfItems(Teacher):
    """A history is the mean of its items' vectors, which are fixed numbers; every seventh item is not covered."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.unused = torch.nn.Parameter(torch.zeros(1))  # RecBole's trainer wants one

    def encode_items(self):
        random = np.random.RandomState(7)
        return torch.from_numpy(random.normal(size=(self.n_items, 6)).astype(np.float32))

    def covered_items(self):
        return super().covered_items() & (torch.arange(self.n_items) % 7 != 2)

    def encode_histories(self, item_seq, item_seq_len, items):
        return (items[item_seq] * (item_seq > 0).unsqueeze(-1)).sum(1) / item_seq_len[:, None]


def mean_teacher(student, data):
    config = teacher_config("UniSRec", student)
    model = MeanOfItems(config, data.dataset(config, data.fit)).to(config["device"]).eval()
    return SimpleNamespace(name="UniSRec", model=model, config=config, digest="none")


def test_teacher_cache(tiny):
    config, _, data = tiny
    folder, _ = build.build_or_load(mean_teacher(config, data), data, config)
    outputs = [np.asarray(folder.array(part), dtype=np.float32)[::9, :4] for part in ("items", "rows")]
    check("teacher cache", vectors.VERSION, "VERSION in recbole_prmkd/teacher_cache/vectors.py", outputs)


def test_top_items(tmp_path):
    random = np.random.RandomState(8)
    teachers = [
        scores.CachedVectors(
            name,
            0.07,
            0.5,
            torch.from_numpy(random.normal(size=(12, 4))).half(),
            random.normal(size=(5, 4)).astype("f2"),
        )
        for name in ("A", "B")
    ]
    cache = scores.TeacherCache(teachers, torch.arange(12), torch.device("cpu"))
    found = top_items.load_or_compute(cache, 5, 6, lambda examples: (examples, examples + 1), {}, tmp_path)
    check(
        "top items",
        top_items.VERSION,
        "VERSION in recbole_prmkd/teacher_cache/top_items.py",
        [found.items, found.scores],
    )


def test_ranking(tiny):
    config, _, data = tiny
    teacher = mean_teacher(config, data)
    metrics = fit.rankings(teacher.model, teacher.config, data)
    outputs = [value for part in sorted(metrics) for _, value in sorted(metrics[part].items())]
    check("ranking", fit.RANKING_VERSION, "RANKING_VERSION in recbole_prmkd/teachers/fit.py", outputs)


def test_other_outputs_of_the_same_version_fail_with_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setattr("test_output_versions.FILE", tmp_path / "versions.json")
    monkeypatch.setattr("test_output_versions.WRITING", False)
    (tmp_path / "versions.json").write_text('{"it": {"1.0": [0.5, 2.0]}}')
    check("it", "1.0", "VERSION in it.py", [np.array([0.50001, 2.0001])])
    for version, outputs, message in (
        ("1.0", [0.5, 2.1], r"raise VERSION in it\.py, then run PRMKD_WRITE_VERSIONS=1"),
        ("1.0", [0.5], r"raise VERSION in it\.py"),
        ("1.1", [0.5, 2.1], r"has no outputs of it 1\.1: run PRMKD_WRITE_VERSIONS=1"),
    ):
        with pytest.raises(pytest.fail.Exception, match=message):
            check("it", version, "VERSION in it.py", [np.array(outputs)])
    monkeypatch.setattr("test_output_versions.WRITING", True)
    with pytest.raises(pytest.fail.Exception):  # a new version is written, an old one never again
        check("it", "1.0", "VERSION in it.py", [np.array([3.0])])
    check("it", "1.1", "VERSION in it.py", [np.array([3.0])])
    assert json.loads((tmp_path / "versions.json").read_text()) == {"it": {"1.0": [0.5, 2.0], "1.1": [3.0]}}
