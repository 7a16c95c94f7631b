"""The teachers' formulas in plain numpy, from the papers, sequence by sequence; nothing here uses the package.

    python tests/reference.py        writes tests/data/parity.json

Weights and inputs come from numpy's frozen generator, so that a seed stands for them; the file holds the outputs that
`test_parity.py` compares the package with. Names and shapes of the weights are those of the authors' state dicts.

Axes: N items with PAD (item 0), B histories, D width, M modalities, T tokens of a sequence.
"""

import json
import math
from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "data" / "parity.json"

TEXT_WIDTH, IMAGE_WIDTH, WIDTH, INNER, EXPERTS, HEADS, LAYERS, LENGTH = 6, 5, 4, 5, 3, 2, 2, 6
ITEMS = 8
HISTORIES = [[3, 1, 6], [2], [7, 4, 1, 5, 2]]  # oldest first
TARGETS = [4, 7, 3]
TEMPERATURE = 0.07
WITHOUT_TEXT, WITHOUT_IMAGE = [0, 5, 6], [0, 2, 6, 7]
TEXT_IMAGE_WEIGHT, MODALITY_WEIGHT = 0.5, 0.25


def filled(shapes, seed):
    """Random float32 arrays of these names and shapes; scales of a LayerNorm lie around 1."""
    random = np.random.RandomState(seed)
    arrays = {name: random.normal(size=shape).astype(np.float32) / 2 for name, shape in shapes.items()}
    return {name: 1 + array / 4 if name.endswith("LayerNorm.weight") else array for name, array in arrays.items()}


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cross_entropy(logits, targets):
    return float(np.mean([-np.log(softmax(row))[target] for row, target in zip(logits, targets, strict=True)]))


def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(w, name, x):
    centred = x - x.mean(-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
    return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x):
    return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attended(queries, keys, values, sees):
    """Multi-head attention of one sequence, [T, D]; sees[i]: positions that position i attends to."""
    out = np.zeros_like(queries)
    for head in np.split(np.arange(queries.shape[1]), HEADS):
        for i, places in enumerate(sees):
            weights = softmax(queries[i, head] @ keys[places][:, head].T / math.sqrt(len(head)))
            out[i, head] = weights @ values[places][:, head]
    return out


# UniSRec (arXiv 2206.05941)


def adaptor_shapes(prefix, width_in):
    shapes = {f"{prefix}.w_gate": (width_in, EXPERTS), f"{prefix}.w_noise": (width_in, EXPERTS)}
    for e in range(EXPERTS):
        shapes |= {f"{prefix}.experts.{e}.bias": (width_in,), f"{prefix}.experts.{e}.lin.weight": (WIDTH, width_in)}
    return shapes


def encoder_shapes():
    shapes = {"position_embedding.weight": (LENGTH, WIDTH), "LayerNorm.weight": (WIDTH,), "LayerNorm.bias": (WIDTH,)}
    for layer in range(LAYERS):
        attention = f"trm_encoder.layer.{layer}.multi_head_attention"
        feed = f"trm_encoder.layer.{layer}.feed_forward"
        for part in ("query", "key", "value", "dense"):
            shapes |= {f"{attention}.{part}.weight": (WIDTH, WIDTH), f"{attention}.{part}.bias": (WIDTH,)}
        shapes |= {f"{feed}.dense_1.weight": (INNER, WIDTH), f"{feed}.dense_1.bias": (INNER,)}
        shapes |= {f"{feed}.dense_2.weight": (WIDTH, INNER), f"{feed}.dense_2.bias": (WIDTH,)}
        for norm in (attention, feed):
            shapes |= {f"{norm}.LayerNorm.weight": (WIDTH,), f"{norm}.LayerNorm.bias": (WIDTH,)}
    return shapes


def side_table(width, without):
    """Vectors of all items, zero where there is none; their seed is their width: [N, width]."""
    table = np.random.RandomState(width).normal(size=(ITEMS, width)).astype(np.float32)
    table[without] = 0
    return table


def unisrec_weights():
    """Those of the transductive stage, which has an embedding of each item too."""
    return filled(
        {**encoder_shapes(), **adaptor_shapes("moe_adaptor", TEXT_WIDTH), "item_embedding.weight": (ITEMS, WIDTH)}, 1
    )


def adapted(w, prefix, x):
    """Mixture of whitening experts, equations (2) to (4): [N, width_in] -> [N, D]; and its gates [N, experts]."""
    gates = softmax(x @ w[f"{prefix}.w_gate"])
    experts = [(x - w[f"{prefix}.experts.{e}.bias"]) @ w[f"{prefix}.experts.{e}.lin.weight"].T for e in range(EXPERTS)]
    return sum(gates[:, [e]] * experts[e] for e in range(EXPERTS)), gates


def history_vectors(w, items):
    """The causal Transformer's state at the last item of each history, equations (5) to (7): [B, D]."""
    vectors = []
    for history in HISTORIES:
        x = layer_norm(w, "LayerNorm", items[history] + w["position_embedding.weight"][: len(history)])
        for layer in range(LAYERS):
            name = f"trm_encoder.layer.{layer}.multi_head_attention"
            parts = [linear(w, f"{name}.{part}", x) for part in ("query", "key", "value")]
            mixed = linear(w, f"{name}.dense", attended(*parts, [np.arange(i + 1) for i in range(len(x))]))
            x = layer_norm(w, f"{name}.LayerNorm", mixed + x)
            name = f"trm_encoder.layer.{layer}.feed_forward"
            mixed = linear(w, f"{name}.dense_2", gelu(linear(w, f"{name}.dense_1", x)))
            x = layer_norm(w, f"{name}.LayerNorm", mixed + x)
        vectors.append(x[-1])
    return np.stack(vectors)


def cosines_over_temperature(histories, items):
    return unit(histories) @ unit(items).T / TEMPERATURE


def unisrec():
    """Adaptor, gates, history vectors, logits and loss, of both stages of fine-tuning."""
    w = double(unisrec_weights())
    items, gates = adapted(w, "moe_adaptor", side_table(TEXT_WIDTH, WITHOUT_TEXT).astype(float))
    found = {"gates": gates}
    for stage, vectors in (("inductive", items), ("transductive", items + w["item_embedding.weight"])):
        histories = history_vectors(w, vectors)
        logits = cosines_over_temperature(histories, vectors)
        loss = cross_entropy(logits, TARGETS)
        found[stage] = {"items": vectors, "histories": histories, "logits": logits, "loss": loss}
    return found


# UniM2Rec: the formulas of our reconstruction, in the docstring of recbole_prmkd/teachers/unim2rec.py


def unim2rec_weights():
    shapes = {**encoder_shapes(), "missing": (WIDTH,)}
    for name, width in (("text", TEXT_WIDTH), ("image", IMAGE_WIDTH)):
        shapes |= adaptor_shapes(f"adaptors.{name}", width)
        shapes |= {f"gates.{name}.weight": (1, WIDTH), f"gates.{name}.bias": (1,)}
    return filled(shapes, 3)


def unim2rec():
    """Fused items, history vectors, logits, and the loss with both contrastive terms."""
    w, items, present, parts = double(unim2rec_weights()), [], [], []
    for name, width, without in (("text", TEXT_WIDTH, WITHOUT_TEXT), ("image", IMAGE_WIDTH, WITHOUT_IMAGE)):
        table = side_table(width, without).astype(float)
        present.append((table != 0).any(1))
        parts.append(adapted(w, f"adaptors.{name}", unit(table))[0])
    for n in range(ITEMS):
        own = [m for m in range(2) if present[m][n]]
        logits = np.array([linear(w, f"gates.{('text', 'image')[m]}", parts[m][n])[0] for m in own])
        fused = sum(g * parts[m][n] for m, g in zip(own, softmax(logits), strict=True)) if own else w["missing"]
        items.append(fused)
    items = np.stack(items)
    histories = history_vectors(w, items)
    logits = cosines_over_temperature(histories, items)
    both = [t for t in sorted(set(TARGETS)) if present[0][t] and present[1][t]]
    between = cosines_over_temperature(parts[0][both], parts[1][both])
    text_image = (cross_entropy(between, range(len(both))) + cross_entropy(between.T, range(len(both)))) / 2
    within = []
    for m in range(2):
        having = [b for b, target in enumerate(TARGETS) if present[m][target]]
        among = sorted({TARGETS[b] for b in having})
        scores = cosines_over_temperature(histories[having], parts[m][among])
        within.append(cross_entropy(scores, [among.index(TARGETS[b]) for b in having]))
    loss = cross_entropy(logits, TARGETS) + TEXT_IMAGE_WEIGHT * text_image + MODALITY_WEIGHT * np.mean(within)
    return {"items": items, "histories": histories, "logits": logits, "loss": float(loss)}


# Recformer (arXiv 2305.13731)

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "title", "brand", "red", "blue", "pen", "cup", "old"]
TEXTS = [  # of the items 1 to 5
    {"title": "red pen", "brand": "old"},
    {"title": "blue cup", "brand": "red"},
    {"title": "old old pen", "brand": "blue"},
    {"title": "cup", "brand": "pen"},
    {"title": "blue blue red cup", "brand": "cup"},
]
TEXT_HISTORIES, TEXT_TARGETS = [[3, 1, 5], [2], [4, 2]], [2, 1, 3]
TOKEN_WIDTH, TOKEN_INNER, WINDOW, POSITIONS, ITEM_POSITIONS = 8, 6, 4, 32, 5
RECFORMER_TEMPERATURE = 0.05
CLS, PAD, KEY, VALUE = VOCABULARY.index("[CLS]"), 0, 1, 2


def recformer_weights():
    norm = {"weight": (TOKEN_WIDTH,), "bias": (TOKEN_WIDTH,)}
    tables = {
        "word": len(VOCABULARY),
        "position": POSITIONS + PAD + 1,
        "token_type": 4,
        "item_position": ITEM_POSITIONS,
    }
    shapes = {f"embeddings.{name}_embeddings.weight": (rows, TOKEN_WIDTH) for name, rows in tables.items()}
    shapes |= {f"embeddings.LayerNorm.{part}": shape for part, shape in norm.items()}
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        dense = [f"attention.self.{part}{kind}" for part in ("query", "key", "value") for kind in ("", "_global")]
        sizes = {part: (TOKEN_WIDTH, TOKEN_WIDTH) for part in [*dense, "attention.output.dense"]}
        sizes |= {"intermediate.dense": (TOKEN_INNER, TOKEN_WIDTH), "output.dense": (TOKEN_WIDTH, TOKEN_INNER)}
        for part, (out, into) in sizes.items():
            shapes |= {f"{name}.{part}.weight": (out, into), f"{name}.{part}.bias": (out,)}
        for part in ("attention.output", "output"):
            shapes |= {f"{name}.{part}.LayerNorm.{end}": shape for end, shape in norm.items()}
    return filled(shapes, 4)


def embedded(w, items):
    """<s> and the tokens of these items, the newest first: word + position + token type + item position, [T, D]."""
    tokens = [(CLS, 0, 0)]
    for place, item in enumerate(items, start=1):
        for key, value in TEXTS[item - 1].items():
            tokens += [(VOCABULARY.index(key), KEY, place)]
            tokens += [(VOCABULARY.index(word), VALUE, place) for word in value.split()]
    words, types, places = np.array(tokens).T
    table = {
        name: w[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type", "item_position")
    }
    position = PAD + 1 + np.arange(len(tokens))
    total = (
        table["word"][words] + table["position"][position] + table["token_type"][types] + table["item_position"][places]
    )
    return layer_norm(w, "embeddings.LayerNorm", total)


def longformer(w, x):
    """States [T, D]: a token sees half a window to each side and <s>; <s> sees all, by projections of its own."""
    half, number = WINDOW // 2, len(x)
    near = [sorted({0, *range(max(0, i - half), min(number, i + half + 1))}) for i in range(number)]
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        local, first = (
            [linear(w, f"{name}.attention.self.{part}{kind}", x) for part in ("query", "key", "value")]
            for kind in ("", "_global")
        )
        mixed = attended(*local, near)
        mixed[0] = attended(first[0][:1], *first[1:], [np.arange(number)])[0]
        x = layer_norm(w, f"{name}.attention.output.LayerNorm", linear(w, f"{name}.attention.output.dense", mixed) + x)
        mixed = linear(w, f"{name}.output.dense", gelu(linear(w, f"{name}.intermediate.dense", x)))
        x = layer_norm(w, f"{name}.output.LayerNorm", mixed + x)
    return x


def recformer():
    """Embeddings and states of the first history; by pooling: item table, history vectors, cosines and loss."""
    w = double(recformer_weights())
    newest_first = [history[::-1] for history in TEXT_HISTORIES]
    x = embedded(w, newest_first[0])
    found = {"embedded": x, "states": longformer(w, x)}
    for pooling, pooled in (("cls", lambda states: states[0]), ("mean", lambda states: states.mean(0))):
        items = np.stack([pooled(longformer(w, embedded(w, [n + 1]))) for n in range(len(TEXTS))])
        histories = np.stack([pooled(longformer(w, embedded(w, history))) for history in newest_first])
        cosine = unit(histories) @ unit(items).T
        loss = cross_entropy(cosine / RECFORMER_TEMPERATURE, [target - 1 for target in TEXT_TARGETS])
        found[pooling] = {"items": items, "histories": histories, "cosine": cosine, "loss": loss}
    return found


def double(weights):
    return {name: array.astype(float) for name, array in weights.items()}


def outputs():
    """All of them, as they stand in the file: seven decimals."""
    return rounded({"unisrec": unisrec(), "unim2rec": unim2rec(), "recformer": recformer()})


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return np.round(value, 7).tolist()


if __name__ == "__main__":
    FILE.write_text(json.dumps(outputs(), separators=(",", ":")).replace('],"', '],\n"') + "\n")
