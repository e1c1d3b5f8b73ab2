"""GPT-2: the model, its initial weights, its key-value cache, its files.

    model, tokenizer = GPT.from_pretrained("runs/solver"), Tokenizer.from_pretrained("runs/solver")
    ids = torch.tensor([tokenizer.encode(" Tom has 5 apples.")])    # (1, T)
    logits = model(ids)                                             # (1, T, vocab_size)
    next_token = logits[0, -1].argmax()

The model comes first, its parts before the whole: GPT.forward is a token's way. Its parameters have the
names and shapes of the published weights: a Hugging Face GPT-2 folder is read and written without renaming.
Below it: how students from scratch start, the key-value cache, the folder's files, the download of published
weights.
"""
import hashlib
import json
import math
import mmap
import os
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import requests
import torch
import torch.nn.functional as F
from requests.adapters import HTTPAdapter
from torch import nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm
from urllib3.util import Retry


@dataclass
class GPTConfig:
    """Shape of a GPT-2. Published n_layer/n_head/n_embd: 12/12/768, 24/16/1024, 36/20/1280, 48/25/1600."""
    vocab_size: int = 50257
    block_size: int = 1024  # tokens of the longest sequence: n_positions in config.json
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    gelu: str = "tanh"  # GPT-2's approximation; "none" is the exact one, on a CPU three times as fast


class Linear(nn.Module):
    """x @ weight + bias, with the weight stored (n_in, n_out) as in the published files."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x):
        return F.linear(x, self.weight.t(), self.bias)


class Attention(nn.Module):
    """Causal self-attention with n_head heads; `layer` is its number, under which a cache has its keys."""

    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.config = layer, config
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def forward(self, x, cache=None):
        B, T, C = x.shape
        dropout = self.config.dropout if self.training else 0.0
        q, k, v = self.c_attn(x).split(C, dim=2)
        q, k, v = (part.view(B, T, self.config.n_head, -1) for part in (q, k, v))  # (B, T, n_head, head_dim)
        if cache is None:
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (B, n_head, T, head_dim)
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
            y = y.transpose(1, 2)  # (B, T, n_head, head_dim)
        else:
            y = cache.attend(self.layer, q[0], k[0], v[0])  # B is 1: (T, n_head, head_dim)
        return F.dropout(self.c_proj(y.reshape(B, T, C)), dropout)


class MLP(nn.Module):
    """Two matrices with a GELU between them."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        x = self.c_proj(F.gelu(self.c_fc(x), approximate=self.config.gelu))
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
    """GPT-2 with a head tied to the token embedding; `init_weights` or `from_pretrained` set the weights."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        # keep one activation a block and compute the others again in the backward pass: a third more work
        self.checkpoint_activations = False
        # nn.Embedding(n, n_embd) would draw weights that nobody uses, and move the random state
        self.wte = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.n_embd), freeze=False)
        self.wpe = nn.Embedding.from_pretrained(torch.empty(config.block_size, config.n_embd), freeze=False)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=1e-5)

    def forward(self, ids, out_positions=None, cache=None):
        """Logits (B, T, vocab_size) of ids (B, T) int64, shorter rows padded on the right with any id.

        out_positions: (N,) int64, positions in the flattened batch (B * T), for the logits of these alone,
            (N, vocab_size): the head is a third of GPT-2 small's work.
        cache: a KVCache whose `place` has been told of ids (1, N), the new tokens of some of its rows.
        """
        B, T = ids.shape
        positions = torch.arange(T, device=ids.device) if cache is None else cache.positions
        x = self.wte(ids) + self.wpe(positions)  # (B, T, n_embd)
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.h:
            if self.checkpoint_activations and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x, cache)
        if out_positions is not None:
            x = x.view(B * T, -1)[out_positions]  # (N, n_embd)
        return self.head(self.ln_f(x))

    def head(self, x):
        """Logits from the normalised residual stream: the head is the token embedding again."""
        return F.linear(x, self.wte.weight)

    def crop_block_size(self, block_size):
        """Drop the positions from `block_size` on. Raises ValueError for a block longer than the model's."""
        if block_size > self.config.block_size:
            raise ValueError(f"a block of {block_size} tokens: the model has positions for "
                             f"{self.config.block_size}")
        self.config.block_size = self.wpe.num_embeddings = block_size
        self.wpe.weight = nn.Parameter(self.wpe.weight.detach()[:block_size].clone())

    def save_pretrained(self, folder):
        """Write config.json, generation_config.json and model.safetensors, as GPT2LMHeadModel does."""
        write_config(Path(folder), self.config, self.wte.weight.dtype)
        parameters = {f"transformer.{name}": p for name, p in self.named_parameters()}
        write_safetensors(Path(folder, "model.safetensors"), parameters)

    @classmethod
    def from_pretrained(cls, folder, mapped=False):
        """Open a Hugging Face GPT-2 folder, in float32 on the CPU; dropout is off until model.train().

        mapped: float32 parameters are views of the file, which opens in half the time. Not for training:
            while they are, Windows does not let the file be replaced.
        Raises ValueError, one line that names the file and the field or tensor, if this is no such GPT-2, and
        OSError for a file that cannot be read.
        """
        with torch.device("meta"):  # shapes without memory: the file's tensors become the parameters
            model = cls(read_config(Path(folder, "config.json")))
        model.load_state_dict(read_weights(Path(folder), model, mapped), assign=True)
        return model.eval()


# ---- how students from scratch start -----------------------------------------------------------------------

# GPT-2 starts from normal weights and learns from 40 GB of text. Students from scratch have minutes: their
# position embeddings are sinusoids (Vaswani et al. 2017), and both embeddings are ten times larger and the
# last norm ten times smaller, so that the logits keep their size. At a student's learning rate a few steps of
# AdamW would rewrite embeddings of 0.02.

POSITION_AMPLITUDE = 0.03
EMBEDDING_SCALE = 10.0


@torch.no_grad()
def init_weights(model, seed=0):
    """Initialise a GPT to be trained from scratch, the same for a seed on every device; returns the model."""
    config, generator = model.config, torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():  # as in GPT-2, where 2 n_layer c_proj add to the residual stream
        if p.dim() == 2:
            std = 0.02 / math.sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else 0.02
            p.copy_(torch.empty(p.shape).normal_(0, std, generator=generator))
        else:
            p.fill_(0.0 if name.endswith("bias") else 1.0)

    half = config.n_embd // 2
    frequencies = 10000 ** (-np.arange(half) / half)  # from 1 down to about 1 / 10000 radians a token
    angles = np.arange(config.block_size)[:, None] * frequencies  # (block_size, half)
    # by numpy: the last bit of torch's sine in float64 differs between runs with two threads
    sinusoids = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # (block_size, 2 * half)
    model.wpe.weight[:, :2 * half] = torch.from_numpy(POSITION_AMPLITUDE * sinusoids).to(model.wpe.weight)

    model.wte.weight *= EMBEDDING_SCALE
    model.wpe.weight *= EMBEDDING_SCALE
    model.ln_f.weight.fill_(1 / EMBEDDING_SCALE)
    return model


# ---- the key-value cache, and matrices prepacked for the CPU -----------------------------------------------

class KVCache:
    """Keys and values of every layer for a batch of rows, each of which grows at its own pace.

    A forward's ids (1, N) are the new tokens of some rows, one row behind the other, without padding. `place`
    says which belong where. Here rows 0 and 1 decode a token after 9 and 7 others, row 4 prefills 3:

        cache.place(rows=[0, 1, 4], starts=[9, 7, 0], counts=[1, 1, 3])
        ids              a  b  c  d  e
        cache.rows       0  1  4  4  4
        cache.positions  9  7  0  1  2

    The model's matrices see N tokens side by side; only attention, in `attend`, knows of rows.
    """

    def __init__(self, config, rows, device="cpu", dtype=torch.float32):
        shape = (config.n_layer, rows, config.n_head, config.block_size, config.n_embd // config.n_head)
        self.k, self.v = lazy_zeros(shape, device, dtype), lazy_zeros(shape, device, dtype)
        self.few_calls = self.k.device.type != "cpu"  # see group_rows

    def place(self, rows, starts, counts):
        """Place the next forward's tokens: counts[i] of them in row rows[i], at positions from starts[i] on.

        Three lists of int, of at least one row, none of them twice.
        """
        device, places = self.k.device, list(zip(rows, starts, counts))
        self.rows = torch.tensor([row for row, _, n in places for _ in range(n)], device=device)  # (N,)
        self.positions = torch.tensor([start + t for _, start, n in places for t in range(n)], device=device)
        offsets = [0, *accumulate(counts)]  # where a row's tokens begin in ids
        self.calls = []  # of attention, the same in every layer
        for group in self.group_rows(rows, counts):
            B, T = len(group), max(counts[i] for i in group)
            n_keys = max(starts[i] + counts[i] for i in group)
            # shorter rows are padded with their last token
            tokens = as_index([offsets[i] + min(t, counts[i] - 1) for i in group for t in range(T)], device)
            mask = None  # a single query sees all keys of its row
            if B * T > 1:
                keys, queries = torch.arange(n_keys, device=device), self.positions[tokens].view(B, 1, T, 1)
                mask = keys <= queries  # (B, 1, T, n_keys)
            self.calls.append((as_index([rows[i] for i in group], device), tokens, (B, T), n_keys, mask))

    def group_rows(self, rows, counts):
        """Indices into `rows`, a list of them for each call of attention.

        rows [0, 1, 4, 5, 7, 8], counts [1, 1, 3, 1, 1, 4]:  on the CPU  [0, 1], [3], [4], [2], [5]
                                                             on a GPU    [0, 1, 3, 4], [2, 5]
        """
        if self.few_calls:  # a GPU: rows with about equally many tokens (1, 2, 3-4, 5-8, ...) share a call
            groups = {}
            for i, n in enumerate(counts):
                groups.setdefault((n - 1).bit_length(), []).append(i)
            return list(groups.values())
        # The CPU: copying keys takes longer than a call. Decoding rows share one where they are consecutive,
        # so that their keys are a slice of the cache; prefilling rows have one each, without padding.
        decoding, prefilling = [], []
        for i, n in enumerate(counts):
            if n > 1:
                prefilling.append([i])
            elif decoding and rows[i] == rows[decoding[-1][-1]] + 1:
                decoding[-1].append(i)
            else:
                decoding.append([i])
        return decoding + prefilling

    def attend(self, layer, q, k, v):
        """Store a layer's new k and v, let each q see its row up to itself. All are (N, n_head, head_dim)."""
        self.k[layer][self.rows, :, self.positions] = k.to(self.k.dtype)  # autocast's dtype is another
        self.v[layer][self.rows, :, self.positions] = v.to(self.v.dtype)
        out = torch.empty_like(q)
        for rows, tokens, (B, T), n_keys, mask in self.calls:
            queries = q[tokens].unflatten(0, (B, T)).transpose(1, 2)  # (B, n_head, T, head_dim)
            keys, values = self.k[layer, rows, :, :n_keys], self.v[layer, rows, :, :n_keys]
            y = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
            out[tokens] = y.transpose(1, 2).flatten(0, 1)  # padding writes its token's own result again
        return out

    def copy_prefix(self, source, target, n):
        """Copy the first n positions of row `source` to row `target`."""
        for cache in (self.k, self.v):
            cache[:, target, :, :n] = cache[:, source, :, :n]


def as_index(numbers, device):
    """An index of a tensor: a slice, which copies nothing, for consecutive numbers, else (n,) int64."""
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return slice(numbers[0], numbers[-1] + 1)
    return torch.tensor(numbers, device=device)


def lazy_zeros(shape, device, dtype):
    """torch.zeros, but on the CPU the system gives the memory page by page as it is written: dialogues of 200
    tokens take a fifth of a cache for 1,024."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    return torch.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.itemsize), dtype=dtype).view(shape)


LARGE_MATRIX = 1 << 18  # elements; smaller ones stay in the processor's cache, and gain nothing by prepacking


def prepack_matrices(model):
    """Lay out the large matrices of a float32 model on the CPU as oneDNN reads them fastest.

    F.linear does so anew in each call, which for a few rows takes longer than the product. Returns the model,
    which can no longer be trained or saved; a model of another device or dtype stays as it is.
    """
    embedding = model.wte.weight
    has_onednn = hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    if embedding.device.type != "cpu" or embedding.dtype != torch.float32 or not has_onednn:
        return model

    def prepacked(weight, bias=None):
        """The function x -> x @ weight.T + bias of a weight (n_out, n_in)."""
        weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        return lambda x: torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")

    for module in model.modules():
        if isinstance(module, Linear) and module.weight.numel() >= LARGE_MATRIX:
            module.forward = prepacked(module.weight.t(), module.bias)
            module.weight = None
    if embedding.numel() >= LARGE_MATRIX:
        model.head = prepacked(embedding)
    return model


# ---- the files of a Hugging Face GPT-2 folder --------------------------------------------------------------

GELU_NAMES = {"tanh": "gelu_new", "none": "gelu"}  # of GPTConfig.gelu in config.json


def write_config(folder, config, dtype):
    """Write config.json, and generation_config.json for transformers' `generate`."""
    end = config.vocab_size - 1  # <|endoftext|>
    fields = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": config.vocab_size,
              "n_positions": config.block_size, "n_ctx": config.block_size, "n_embd": config.n_embd,
              "n_layer": config.n_layer, "n_head": config.n_head, "n_inner": None,
              "activation_function": GELU_NAMES[config.gelu], "layer_norm_epsilon": 1e-5,
              "resid_pdrop": config.dropout, "embd_pdrop": config.dropout, "attn_pdrop": config.dropout,
              "tie_word_embeddings": True, "bos_token_id": end, "eos_token_id": end,
              "torch_dtype": str(dtype).removeprefix("torch.")}
    generation = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end,
                  "max_length": config.block_size}
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def read_config(path):
    """The GPTConfig of a config.json. Raises ValueError that names the field that is not supported here."""
    refuse_lfs_pointer(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        fields = ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd")  # in GPTConfig's order
        sizes = {field: found.get(field) for field in fields}
    except (ValueError, RecursionError, AttributeError):
        raise ValueError(f"{path}: not a JSON object")
    for field, size in sizes.items():
        if type(size) is not int or not 1 <= size <= 10 ** 6:
            raise ValueError(f"{path}: {field} is {size!r}, expected is a whole number from 1 to a million")
    if sizes["n_embd"] % sizes["n_head"]:
        raise ValueError(f"{path}: n_embd {sizes['n_embd']} is not a multiple of n_head {sizes['n_head']}")
    dropout = found.get("resid_pdrop", 0.1)
    if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ValueError(f"{path}: resid_pdrop is {dropout!r}, expected is a number from 0 to less than 1")
    supported = {"model_type": ["gpt2"], "activation_function": ["gelu_new", "gelu_pytorch_tanh", "gelu"],
                 "layer_norm_epsilon": [1e-5], "n_inner": [None, 4 * sizes["n_embd"]],
                 "embd_pdrop": [dropout], "attn_pdrop": [dropout], "tie_word_embeddings": [True],
                 "scale_attn_weights": [True], "scale_attn_by_inverse_layer_idx": [False],
                 "add_cross_attention": [False]}
    for field, values in supported.items():
        if field in found and found[field] not in values:
            raise ValueError(f"{path}: {field} is {found[field]!r}, only {values[0]!r} is supported")
    gelu = "none" if found.get("activation_function") == "gelu" else "tanh"
    return GPTConfig(*sizes.values(), dropout, gelu)


def read_weights(folder, model, mapped):
    """A folder's {name: float32 tensor} of all `model`'s parameters. Raises ValueError if they do not fit."""
    if (path := folder / "model.safetensors").exists():
        tensors = read_safetensors(path, mapped)
    elif (path := folder / "pytorch_model.bin").exists():
        tensors = read_bin(path)
    else:
        raise ValueError(f"{folder}: no model.safetensors or pytorch_model.bin here (shards are not read)")
    shapes = {name: p.shape for name, p in model.named_parameters()}
    shapes["lm_head.weight"] = shapes["wte.weight"]  # some files have the tied head as well
    weights = {}
    for name, tensor in tensors:
        name = name.removeprefix("transformer.")
        if name.endswith((".attn.bias", ".attn.masked_bias")):
            continue  # causal masks of old files
        if name not in shapes or name in weights:
            raise ValueError(f"{path}: {'unexpected' if name not in shapes else 'a second'} tensor {name!r}")
        if tensor.shape != shapes[name] or not tensor.is_floating_point():
            raise ValueError(f"{path}: {name} is {tuple(tensor.shape)} of {tensor.dtype}, "
                             f"config.json says {tuple(shapes[name])}, of floats")
        weights[name] = tensor.float()
        if not weights[name].sum().isfinite():
            raise ValueError(f"{path}: {name} holds NaN or infinite weights")
    head = weights.pop("lm_head.weight", None)
    if missing := shapes.keys() - weights.keys() - {"lm_head.weight"}:
        raise ValueError(f"{path}: tensor {min(missing)} is missing")
    if head is not None and not torch.equal(head, weights["wte.weight"]):
        raise ValueError(f"{path}: lm_head.weight is not wte.weight, only a head tied to it is supported")
    return weights


def refuse_lfs_pointer(path):
    """Raise ValueError for the short text that Git LFS leaves in place of a file that was not fetched."""
    with open(path, "rb") as f:
        if f.read(100).startswith(b"version https://git-lfs.github.com/spec/v1"):
            raise ValueError(f"{path}: a Git LFS pointer, not the file itself: fetch it with git lfs pull")


def read_bin(path):
    """Yield (name, tensor) of a file of torch.save. Raises ValueError rather than unpickle anything else."""
    refuse_lfs_pointer(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as e:  # a broken pickle raises nearly anything
        raise ValueError(f"{path}: not a file of nothing but weights ({type(e).__name__})")
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise ValueError(f"{path}: not a file of nothing but named weights")
    while found:
        yield found.popitem()  # which frees a tensor that has been converted


# A safetensors file is 8 bytes with the length of a JSON header, the header, then little-endian numbers:
# {"wte.weight": {"dtype": "F32", "shape": [50257, 768], "data_offsets": [0, 154389504]}, "wpe.weight": ...}
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
          "BOOL": torch.bool, "U8": torch.uint8}  # the last two: causal masks of old files


def read_safetensors(path, mapped=False):
    """Yield (name, tensor) of a safetensors file, in the order of their bytes.

    A tensor has memory of its own; with `mapped` a float32 one is a view of a private map of the file, which
    reads a page when it is used. Raises ValueError, one line that names the file, if its header does not
    describe every byte of it.
    """
    refuse_lfs_pointer(path)
    with open(path, "rb") as f:
        start, entries = read_safetensors_header(f, path)
        mapping = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY) if mapped else None
        for first, _, name, dtype, shape in entries:
            n = math.prod(shape)
            if mapped and dtype == "F32":
                tensor = torch.frombuffer(mapping, dtype=torch.float32, count=n, offset=start + first)
            else:
                tensor = torch.empty(n, dtype=DTYPES[dtype])
                f.seek(start + first)
                f.readinto(tensor.view(torch.uint8).numpy())
            yield name, tensor.view(shape)


def read_safetensors_header(f, path):
    """Where the numbers start, and a sorted list of the tensors: (first byte, last, name, dtype, shape)."""
    size = os.fstat(f.fileno()).st_size
    corrupt = ValueError(f"{path}: truncated or corrupt: {size} bytes, which its header does not describe")
    start = 8 + int.from_bytes(f.read(8), "little")
    if start > size:
        raise corrupt
    try:
        header, entries = json.loads(f.read(start - 8)), []
        header.pop("__metadata__", None)
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            entries.append((first, last, name, str(entry["dtype"]), list(entry["shape"])))
        entries.sort()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise corrupt
    end = 0
    for first, last, name, dtype, shape in entries:
        if dtype not in DTYPES:
            raise ValueError(f"{path}: tensor {name!r} has dtype {dtype!r}, supported: {', '.join(DTYPES)}")
        if not all(type(n) is int and n >= 0 for n in (first, last, *shape)):
            raise corrupt
        if first != end or not 0 < last - first == math.prod(shape) * DTYPES[dtype].itemsize:
            raise corrupt
        end = last
    if start + end != size:
        raise corrupt
    return start, entries


def write_safetensors(path, tensors):
    """Write {name: float tensor} as a safetensors file, under another name until it is whole."""
    dtype_names = {dtype: name for name, dtype in DTYPES.items()}
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        first, end = end, end + tensor.nbytes
        header[name] = {"dtype": dtype_names[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [first, end]}
    header = json.dumps(header, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # so that the numbers start aligned
    part = Path(f"{path}.part")
    with open(part, "wb") as f:
        f.write(len(header).to_bytes(8, "little") + header)
        for tensor in tensors.values():
            f.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    os.replace(part, path)


# ---- the published weights ---------------------------------------------------------------------------------

PUBLISHED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
PUBLISHED_FILES = ("config.json", "vocab.json", "merges.txt", "model.safetensors")
RETRIES = Retry(4, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504), raise_on_status=False)


def download_published(name, cache=None):
    """The folder of a published GPT-2, a name of PUBLISHED; downloads the files that are not there yet.

    cache: the folder of downloads, by default that of Hugging Face's libraries. It is laid out as theirs, and
        each side finds what the other has downloaded.
    Raises ValueError, one line that says what to put where, if the files cannot be had.
    """
    xdg_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = os.environ.get("HF_HOME") or Path(xdg_cache, "huggingface")
    cache = Path(cache or os.environ.get("HF_HUB_CACHE") or Path(home, "hub"))
    repository = cache / f"models--openai-community--{name}"
    for repo in (repository, cache / f"models--{name}"):  # the second: its old name
        for folder in sorted(repo.glob("snapshots/*")):
            if all((folder / file).exists() for file in PUBLISHED_FILES):
                return folder

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    url = f"{endpoint}/openai-community/{name}/resolve/main"
    folder = repository / "snapshots" / "main"
    try:
        with requests.Session() as session:
            for scheme in ("http://", "https://"):
                session.mount(scheme, HTTPAdapter(max_retries=RETRIES))
            session.headers["Accept-Encoding"] = "identity"  # announced are size and hash of the plain file
            response = session.head(f"{url}/config.json", timeout=30)
            response.raise_for_status()
            folder = repository / "snapshots" / response.headers.get("X-Repo-Commit", "main")
            folder.mkdir(parents=True, exist_ok=True)
            (repository / "refs").mkdir(exist_ok=True)
            (repository / "refs" / "main").write_text(folder.name)
            for file in PUBLISHED_FILES:
                if not (folder / file).exists():
                    download(session, f"{url}/{file}", folder / file)
    except OSError as e:  # those of requests are OSErrors, too
        reason = getattr(e.args[0], "reason", e) if e.args else e  # urllib3's words, if requests quotes it
        raise ValueError(f"{url}: {reason}; try again, or put {', '.join(PUBLISHED_FILES)} of "
                         f"openai-community/{name} into {folder}")
    return folder


def download(session, url, path):
    """Download `url` to `path`, under another name until size and hash are those that the hub announces.

    Raises OSError if that fails, and leaves nothing behind.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with session.get(url, stream=True, timeout=30) as response:
            response.raise_for_status()
            # the hub redirects to where large files are, and announces them as it does so
            hub = response.history[0].headers if response.history else response.headers
            announced = int(hub.get("X-Linked-Size") or response.headers.get("Content-Length") or 0)
            etag = (hub.get("X-Linked-ETag") or hub.get("ETag", "")).removeprefix("W/").strip('"')
            sha256 = hashlib.sha256()
            bar = tqdm(desc=path.name, total=announced or None, unit="B", unit_scale=True, disable=None)
            with bar, open(part, "wb") as f:
                for chunk in response.iter_content(2 ** 20):
                    f.write(chunk)
                    sha256.update(chunk)
                    bar.update(len(chunk))
        size, digest = part.stat().st_size, etag
        if len(etag) == 64:  # of a large file
            digest = sha256.hexdigest()
        elif len(etag) == 40:  # of a small one: its name in git
            digest = hashlib.sha1(b"blob %d\0" % size + part.read_bytes()).hexdigest()
        if digest != etag or announced not in (0, size):
            raise OSError(f"{path.name}: the {size} bytes received do not have the announced size and hash")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
