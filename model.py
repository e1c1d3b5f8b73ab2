"""GPT-2, from its published description: a decoder-only transformer of pre-norm blocks (Radford et al. 2019).

Modules stand in the order in which a token meets them, parameters carry the names and shapes of the published weights,
so that reading or writing a Hugging Face GPT-2 folder is a copy without renaming. At the bottom: the cache of keys and
values, the files of such a folder, and where the published ones come from. Nothing here knows of text, roles or training.
"""
import hashlib
import http.client
import json
import math
import mmap
import os
import re
import urllib.request
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm


@dataclass
class GPTConfig:
    """Shape of a GPT-2. The published sizes: 12/12/768, 24/16/1024, 36/20/1280, 48/25/1600 (n_layer/n_head/n_embd)."""
    vocab_size: int = 50257
    block_size: int = 1024  # the longest sequence, in tokens: Hugging Face's n_positions
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0


LOOK_BACK = 4.0   # how sharply the first layer's heads look at one position at the start of training
EMBEDDING = 10.0  # how many times larger than GPT-2's a student's embeddings start


class Linear(nn.Module):
    """x @ weight + bias, with the weight stored (n_in, n_out) as in the published GPT-2 files."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x):
        return F.linear(x, self.weight.t(), self.bias)


class Attention(nn.Module):
    """Causal self-attention of n_head heads."""

    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.config = layer, config
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def forward(self, x, cache=None):
        B, T, C = x.shape
        dropout = self.config.dropout if self.training else 0.0
        q, k, v = (part.view(B, T, self.config.n_head, -1) for part in self.c_attn(x).split(C, dim=2))  # (B, T, n_head, head_dim)
        if cache is None:
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True).transpose(1, 2)
        else:
            y = cache.attend(self.layer, q[0], k[0], v[0])
        return F.dropout(self.c_proj(y.reshape(B, T, C)), dropout)


class MLP(nn.Module):
    """Two matrices with GPT-2's GELU (the tanh approximation) between them."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        x = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return F.dropout(x, self.config.dropout, self.training)


class Block(nn.Module):
    """Attention, then MLP, each on the normalised residual stream and added to it."""

    def __init__(self, config, layer):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=1e-5)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=1e-5)
        self.mlp = MLP(config)

    def forward(self, x, cache=None):
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2 with the head tied to the token embedding.

    `model(ids)` maps ids (B, T) int64 to logits (B, T, vocab_size). Rows shorter than T are padded on the right with any
    id: a causal model never looks at what follows. `at` (N,) int64 picks positions of the flattened (B * T) batch and
    makes it logits (N, vocab_size), since the head is a third of GPT-2 small's work. With a `cache` ids is (1, N), new tokens
    of any rows of it, of which `cache.place` has been told; those before them are not read again. With `checkpoint_activations` a
    training step keeps one activation a block and computes the rest again on its way back: less memory, a third more work.
    """
    checkpoint_activations = False

    def __init__(self, config):
        super().__init__()
        self.config = config
        # not drawn here, as nn.Embedding would, but by `initialise`, or read by `open`
        self.wte, self.wpe = (nn.Embedding.from_pretrained(torch.empty(n, config.n_embd), freeze=False)
                              for n in (config.vocab_size, config.block_size))
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=1e-5)

    def forward(self, ids, at=None, cache=None):
        B, T = ids.shape
        positions = torch.arange(T, device=ids.device) if cache is None else cache.positions
        x = self.wte(ids) + self.wpe(positions)  # (B, T, n_embd)
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.h:
            if self.checkpoint_activations and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x, cache)
        if at is not None:
            x = x.view(B * T, -1)[at]  # (N, n_embd)
        return self.head(self.ln_f(x))

    def head(self, x):
        """Logits from the normalised residual stream: the head is the token embedding again."""
        return F.linear(x, self.wte.weight)

    @torch.no_grad()
    def initialise(self, seed=0):
        """Draw initial weights, the same for the same seed on every device; returns the model.

        GPT-2's: normal with deviation 0.02, divided by sqrt(2 n_layer) for the matrices that add to the residual stream;
        biases 0, norms 1. Three departures spare a student from scratch what pretraining would have taught it; all are
        only where learning starts. The position embeddings are sinusoids (Vaswani et al. 2017) of amplitude 0.03, and the
        heads of the first layer look 1, 2, 3, ... tokens back, by the sinusoids of the highest frequencies, from whose
        dimensions the token embeddings stay away at first. Then both embeddings are made ten times larger, and the last
        norm as much smaller, which leaves the logits as they were: AdamW's steps at a student's rate would rewrite
        embeddings of 0.02 within a few steps, and the heads would no longer look anywhere.
        """
        draw = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                deviation = 0.02 / math.sqrt(2 * self.config.n_layer) if name.endswith("c_proj.weight") else 0.02
                p.copy_(torch.empty(p.shape).normal_(0, deviation, generator=draw))
            else:
                p.fill_(0.0 if name.endswith("bias") else 1.0)
        half, head_dim = self.config.n_embd // 2, self.config.n_embd // self.config.n_head
        frequency = 10000 ** (-np.arange(half) / half)
        angle = np.arange(self.config.block_size)[:, None] * frequency  # (block_size, half)
        # by numpy: torch's sine in float64, on two threads, has another last bit in one process of four
        sinusoids = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
        self.wpe.weight[:, :2 * half] = torch.from_numpy(0.03 * sinusoids).to(self.wpe.weight)
        # A head's key is the position's sin and cos at the highest frequencies, its query the same turned back by `back`
        # tokens: sin(w (p - back)) = sin(wp) cos(w back) - cos(wp) sin(w back). Their product is largest at p - back.
        query_key = self.h[0].attn.c_attn.weight[:, :2 * self.config.n_embd].view(-1, 2, self.config.n_head, head_dim)
        for i in range(min(head_dim, half // 2) // 2):
            self.wte.weight[:, [i, half + i]] = 0
            for head in range(self.config.n_head):
                query, key, back = query_key[:, 0, head], query_key[:, 1, head], head + 1  # (n_embd, head_dim) twice
                cos, sin = math.cos(frequency[i] * back), math.sin(frequency[i] * back)
                key[i, 2 * i] += LOOK_BACK
                key[half + i, 2 * i + 1] += LOOK_BACK
                query[i, 2 * i] += LOOK_BACK * cos
                query[half + i, 2 * i] -= LOOK_BACK * sin
                query[half + i, 2 * i + 1] += LOOK_BACK * cos
                query[i, 2 * i + 1] += LOOK_BACK * sin
        for embedding in (self.wte, self.wpe):
            embedding.weight *= EMBEDDING
        self.ln_f.weight.fill_(1 / EMBEDDING)
        return self

    def crop(self, block_size):
        """Forget the positions beyond `block_size`. Raises ValueError for more than there are: they cannot be made up."""
        if block_size > self.config.block_size:
            raise ValueError(f"a block of {block_size} tokens: these weights have positions for {self.config.block_size}")
        self.config.block_size = self.wpe.num_embeddings = block_size
        self.wpe.weight = nn.Parameter(self.wpe.weight.detach()[:block_size])

    def save(self, folder):
        """Write config.json, generation_config.json and model.safetensors into `folder`, as GPT2LMHeadModel does.

        The last token of the vocabulary is <|endoftext|>, where transformers' `generate` ends a sequence.
        """
        c, end = self.config, self.config.vocab_size - 1
        config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": c.vocab_size,
                  "n_positions": c.block_size, "n_ctx": c.block_size, "n_embd": c.n_embd, "n_layer": c.n_layer,
                  "n_head": c.n_head, "n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
                  "resid_pdrop": c.dropout, "embd_pdrop": c.dropout, "attn_pdrop": c.dropout,
                  "tie_word_embeddings": True, "bos_token_id": end, "eos_token_id": end,
                  "torch_dtype": str(self.wte.weight.dtype).removeprefix("torch.")}
        generation = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "max_length": c.block_size}
        for name, fields in ("config", config), ("generation_config", generation):
            Path(folder, f"{name}.json").write_text(json.dumps(fields, indent=2) + "\n")
        write_safetensors(Path(folder, "model.safetensors"), {f"transformer.{name}": p for name, p in self.named_parameters()})

    @classmethod
    def open(cls, folder):
        """Read a GPT-2 folder in Hugging Face's layout into float32 on the CPU; its dropout is off until model.train().

        Raises ValueError, one line that names the file and the field or tensor, for a folder that is not such a GPT-2;
        OSError for a file that is not there.
        """
        with torch.device("meta"):
            model = cls(read_config(Path(folder, "config.json")))
        wanted, weights = dict(model.named_parameters()), {}
        wanted["lm_head.weight"] = wanted["wte.weight"]
        for path, name, tensor in read_weights(Path(folder)):
            name = name.removeprefix("transformer.")
            if name.endswith((".attn.bias", ".attn.masked_bias")):
                continue  # causal masks of old files
            if name not in wanted or name in weights:
                raise ValueError(f"{path}: {'unexpected' if name not in wanted else 'a second'} tensor {name!r}")
            if tensor.shape != wanted[name].shape or not tensor.is_floating_point():
                raise ValueError(f"{path}: {name} is {tuple(tensor.shape)} of {tensor.dtype}, "
                                 f"config.json says {tuple(wanted[name].shape)}, of floats")
            tensor = tensor.float()
            if not tensor.sum().isfinite():
                raise ValueError(f"{path}: {name} holds NaN or infinite weights")
            weights[name] = nn.Parameter(tensor)
        head = weights.pop("lm_head.weight", None)
        if missing := model.state_dict().keys() - weights.keys():
            raise ValueError(f"{folder}: tensor {min(missing)} is missing")
        if head is not None and not torch.equal(head, weights["wte.weight"]):
            raise ValueError(f"{folder}: lm_head.weight is not wte.weight, only a head tied to it is supported")
        model.load_state_dict(weights, assign=True)
        return model.eval()


class KVCache:
    """Keys and values of every layer for a batch of rows, each of which grows on its own.

    A forward's ids (1, N) are the new tokens of some rows, one row's behind another's, as a packed batch: the matrices see N
    tokens, none of them padding, and attention alone, in `attend`, knows of rows. `place` says beforehand which are whose.
    """

    def __init__(self, config, rows, device="cpu", dtype=torch.float32):
        shape = (config.n_layer, rows, config.n_head, config.block_size, config.n_embd // config.n_head)
        self.k, self.v = (zeros(shape, device, dtype) for _ in "kv")
        self.few_calls = self.k.device.type != "cpu"

    def place(self, rows, starts, counts):
        """Say where the next forward's tokens stand: the first counts[0] in the row rows[0] of the cache, at the positions
        from starts[0] on, those behind them in rows[1], ... Three lists of int, at least one row, none of them twice.
        """
        device, spans = self.k.device, list(zip(rows, starts, counts))
        self.rows = torch.tensor([row for row, _, n in spans for _ in range(n)], device=device)  # (N,)
        self.positions = torch.tensor([start + t for _, start, n in spans for t in range(n)], device=device)  # (N,)
        # A call of attention sees all rows with about equally many new tokens, up to twice as many, padded. On the CPU, where
        # a copy of the keys takes longer than a call, one sees neighbours with a single token, and each longer row has its own.
        if self.few_calls:
            sizes = [(n - 1).bit_length() for n in counts]
            groups = [[i for i, its in enumerate(sizes) if its == size] for size in set(sizes)]
        else:
            groups = [list(run) for _, run in groupby(range(len(rows)), lambda i: (rows[i] - i, -1) if counts[i] == 1 else (0, i))]
        offsets = [0, *accumulate(counts)]
        self.calls = []
        for group in groups:
            T, upto = max(counts[i] for i in group), max(starts[i] + counts[i] for i in group)
            tokens = as_slice([offsets[i] + min(t, counts[i] - 1) for i in group for t in range(T)], device)  # (B * T,), padded by a row's last
            at = self.positions[tokens].view(len(group), T)
            # a query sees every key up to its own position; the only one of a single row sees all that there is
            mask = (torch.arange(upto, device=device) <= at[:, :, None])[:, None] if at.numel() > 1 else None  # (B, 1, T, upto)
            self.calls.append((as_slice([rows[i] for i in group], device), tokens, at.shape, upto, mask))

    def attend(self, layer, q, k, v):
        """Store one layer's new k and v, and let q look at all that its row has, up to itself: (N, n_head, head_dim) each."""
        self.k[layer][self.rows, :, self.positions] = k.to(self.k.dtype)  # under autocast they have another
        self.v[layer][self.rows, :, self.positions] = v.to(self.v.dtype)
        out = torch.empty_like(q)
        for rows, tokens, shape, upto, mask in self.calls:
            keys, values = self.k[layer, rows, :, :upto], self.v[layer, rows, :, :upto]  # (B, n_head, upto, head_dim)
            y = F.scaled_dot_product_attention(q[tokens].unflatten(0, shape).transpose(1, 2), keys, values, attn_mask=mask)
            out[tokens] = y.transpose(1, 2).flatten(0, 1)  # what is padded is its row's last token, and comes out as that
        return out

    def fork(self, source, target, n):
        """Copy the first n positions of the row `source` to the row `target`."""
        for cache in self.k, self.v:
            cache[:, target, :, :n] = cache[:, source, :, :n]


def as_slice(numbers, device):
    """What takes these rows of a tensor: a slice, which copies nothing, if they are consecutive, otherwise an int64 tensor."""
    consecutive = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return slice(numbers[0], numbers[-1] + 1) if consecutive else torch.tensor(numbers, device=device)


def zeros(shape, device, dtype):
    """torch.zeros, but on the CPU of memory that the system gives only where it is used: of a cache with 64 rows for a
    block of 1,024 tokens, dialogues of 200 tokens take a fifth."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    return torch.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.itemsize), dtype=dtype).view(shape)


# ---- the files of a folder ---------------------------------------------------------------------------------------------

def read_json(path):
    """A JSON object (dict) from a file. Raises ValueError that names it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: not a JSON file")
    if not isinstance(found, dict):
        raise ValueError(f"{path}: a JSON object is expected, found {type(found).__name__}")
    return found


def read_config(path):
    """The GPTConfig of a config.json. Raises ValueError that names the field in which its model is not this one."""
    found, sizes = read_json(path), {}
    for ours, theirs, most in (("vocab_size", "vocab_size", 2 ** 20), ("block_size", "n_positions", 2 ** 20),
                               ("n_layer", "n_layer", 2 ** 10), ("n_head", "n_head", 2 ** 10), ("n_embd", "n_embd", 2 ** 16)):
        size = sizes[ours] = found.get(theirs)
        if type(size) is not int or not 1 <= size <= most:
            raise ValueError(f"{path}: {theirs} is {size!r}, a whole number from 1 to {most} is expected")
    if sizes["n_embd"] % sizes["n_head"]:
        raise ValueError(f"{path}: n_embd {sizes['n_embd']} is no multiple of n_head {sizes['n_head']}")
    dropout = found.get("resid_pdrop", 0.1)
    if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ValueError(f"{path}: resid_pdrop is {dropout!r}, a share is expected")
    for field, *supported in (("model_type", "gpt2"), ("activation_function", "gelu_new", "gelu_pytorch_tanh"),
                              ("layer_norm_epsilon", 1e-5), ("n_inner", None, 4 * sizes["n_embd"]),
                              ("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False),
                              ("add_cross_attention", False), ("tie_word_embeddings", True),
                              ("embd_pdrop", dropout), ("attn_pdrop", dropout)):
        if found.get(field, supported[0]) not in supported:
            raise ValueError(f"{path}: {field} is {found[field]!r}, only {supported[0]!r} is supported")
    return GPTConfig(**sizes, dropout=dropout)


def read_weights(folder):
    """Yield (path, name, tensor) for a folder's weights: model.safetensors or pytorch_model.bin, whole or in shards."""
    for file, read in ("model.safetensors", read_safetensors), ("pytorch_model.bin", read_bin):
        paths, index = [folder / file], folder / f"{file}.index.json"
        if not paths[0].exists() and index.exists():
            shards = read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(s, str) and Path(s).name == s for s in shards.values()):
                raise ValueError(f"{index}: field 'weight_map' does not name files of this folder")
            paths = [folder / shard for shard in sorted(set(shards.values()))]
        elif not paths[0].exists():
            continue
        for path in paths:
            for name, tensor in read(path):
                yield path, name, tensor
        return
    raise ValueError(f"{folder}: no weights here, neither model.safetensors nor pytorch_model.bin")


def read_bin(path):
    """Yield (name, tensor) of a file that torch.save wrote; nothing but tensors is unpickled. Raises ValueError, one line."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as e:  # whatever a broken pickle leads to
        raise ValueError(f"{path}: not a file of nothing but weights ({type(e).__name__})")
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise ValueError(f"{path}: not a file of nothing but named weights")
    for name in list(found):
        yield name, found.pop(name)  # so that each can be freed when it has been converted


# safetensors: eight bytes of header length, a JSON header, raw little-endian tensors without gaps
DTYPES = {"BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
          "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
LONGEST_HEADER = 100_000_000  # bytes, as for the format's own readers


def read_safetensors(path):
    """Yield (name, tensor) of a safetensors file, in the order in which they stand there.

    A tensor is a view of a private memory map: its pages come from the file when they are used (in the published files they
    stand unaligned, which a CPU takes). The pages of one that is not float32 are given back when the next is asked for.
    Raises ValueError, one line that names the file, where header, dtypes, shapes or offsets do not fit each other or the
    file's size, before any tensor is made.
    """
    with open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        if size < 8:
            raise ValueError(f"{path}: not a safetensors file, only {size} bytes")
        start = 8 + int.from_bytes(f.read(8), "little")
        if start > min(size, LONGEST_HEADER):
            raise ValueError(f"{path}: the header would end at byte {start}, the file ends at {size}")
        try:
            header = json.loads(f.read(start - 8))
            header.pop("__metadata__", None)
            entries = [(first, last, name, entry["dtype"], entry["shape"])
                       for name, entry in header.items() for first, last in [entry["data_offsets"]]]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise ValueError(f"{path}: broken safetensors header")
        for first, last, name, dtype, shape in entries:
            if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in (*shape, first, last)):
                raise ValueError(f"{path}: tensor {name!r} has a broken shape or broken offsets")
            if not isinstance(dtype, str) or dtype not in DTYPES:
                raise ValueError(f"{path}: tensor {name!r} has dtype {dtype!r}, supported: {', '.join(DTYPES)}")
        entries.sort()
        end = 0
        for first, last, name, dtype, shape in entries:
            if first != end or not 0 < last - first == math.prod(shape) * DTYPES[dtype].itemsize:
                raise ValueError(f"{path}: tensor {name!r} of shape {shape} and {dtype} does not fit its bytes {first}-{last}")
            end = last
        if start + end != size:
            raise ValueError(f"{path}: {size} bytes long, its header describes {start + end}")
        data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)
        for first, last, name, dtype, shape in entries:
            yield name, torch.frombuffer(data, dtype=DTYPES[dtype], count=math.prod(shape), offset=start + first).view(shape)
            if dtype != "F32" and hasattr(data, "madvise"):  # it has been converted: its pages need not stay in memory
                page = (start + first) // mmap.PAGESIZE * mmap.PAGESIZE
                data.madvise(mmap.MADV_DONTNEED, page, start + last - page)


def write_safetensors(path, tensors):
    """Write {name: float tensor} as a safetensors file: aside, then renamed, since they may be views of the old one."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, t in tensors.items():
        header[name] = {"dtype": names[t.dtype], "shape": list(t.shape),
                        "data_offsets": [end, end := end + t.numel() * t.element_size()]}
    header = json.dumps(header, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # so that the tensors start aligned
    aside = Path(f"{path}.writing")
    with open(aside, "wb") as f:
        f.write(len(header).to_bytes(8, "little") + header)
        for t in tensors.values():
            f.write(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    os.replace(aside, path)


# ---- the published weights ---------------------------------------------------------------------------------------------

PUBLISHED = "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"
FILES = "config.json", "vocab.json", "merges.txt", "model.safetensors"


def published(name, cache=None):
    """The folder of a published GPT-2, a name of PUBLISHED; what is not there yet is downloaded.

    cache: the folder of downloads, HF_HOME/hub if None. It is laid out as transformers' own, which finds there what we
    downloaded, as we do what it did. Raises ValueError, one line, where that is not to be had; it says what to put where.
    """
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "huggingface")
    cache = Path(cache or os.environ.get("HF_HUB_CACHE") or Path(home, "hub"))
    for repository in f"openai-community--{name}", name:  # the second: from_pretrained("gpt2")
        for folder in sorted(cache.glob(f"models--{repository}/snapshots/*")):
            if all((folder / file).exists() for file in FILES):
                return folder
    folder = cache / f"models--openai-community--{name}" / "snapshots" / "main"
    folder.mkdir(parents=True, exist_ok=True)
    source = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co').rstrip('/')}/openai-community/{name}/resolve/main"
    for file in FILES:
        try:
            if not (folder / file).exists():
                download(f"{source}/{file}", folder / file)
        except (OSError, http.client.HTTPException) as e:
            raise ValueError(f"{source}/{file}: {getattr(e, 'reason', e)}; try again, which goes on where it broke off, or put "
                             f"{', '.join(FILES)} of openai-community/{name} into {folder}")
    return folder


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, and keep what the hub itself says of a file (`said`, a dict of headers) before it sends us elsewhere."""

    def __init__(self, hub):
        self.hub, self.said = hub, {}

    def listen(self, host, headers):
        if host == self.hub:
            self.said |= {key.lower(): value for key, value in headers.items()}

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        self.listen(req.host, headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(url, path):
    """Download `url` into the file `path`: aside, and renamed when its size and hash are those that the hub announces.

    A break is resumed as long as bytes still come, and by the next call. Raises OSError or HTTPException for what ends
    it, ValueError if what came is not what was announced.
    """
    part = path.with_name(path.name + ".part")
    redirects = Redirects(urlsplit(url).netloc)
    opener, total = urllib.request.build_opener(redirects), math.inf
    with open(part, "ab") as f:
        while f.tell() < total:
            had, broke = f.tell(), ConnectionError("the connection was closed")
            start = f.seek(f.truncate(max(had - 1, 0)))  # the last byte once more: no server answers for none
            try:
                with opener.open(urllib.request.Request(url, headers={"Range": f"bytes={start}-"}), timeout=30) as response:
                    redirects.listen(urlsplit(response.url).netloc, response.headers)
                    if response.status != 206:
                        start = f.seek(f.truncate(0))  # a server that sends all of it
                    total = start + int(response.headers["Content-Length"] or 0)
                    with tqdm(desc=path.name, initial=start, total=total, unit="B", unit_scale=True, disable=None) as bar:
                        while chunk := response.read(2 ** 20):
                            f.write(chunk)
                            bar.update(len(chunk))
            except (OSError, http.client.HTTPException) as e:
                broke = e
                if getattr(e, "code", None) == 416:  # more is here than there: the next call begins anew
                    f.truncate(0)
            if f.tell() < total and f.tell() <= had:
                raise broke
        f.flush()
        os.fsync(f.fileno())
    said = redirects.said
    size, etag = part.stat().st_size, (said.get("x-linked-etag") or said.get("etag", "")).removeprefix("W/").strip('"')
    # a large file's ETag is its SHA-256, a small one's its name in git: a SHA-1
    digest = hashlib.sha256() if len(etag) == 64 else hashlib.sha1(b"blob %d\0" % size)
    with open(part, "rb") as f:
        while chunk := f.read(2 ** 20):
            digest.update(chunk)
    if size != int(said.get("x-linked-size", size)) or re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", etag) and digest.hexdigest() != etag:
        part.unlink()
        raise ValueError(f"{url}: what came ({size} bytes) has not the size or hash that the hub announces, and is deleted")
    os.replace(part, path)
