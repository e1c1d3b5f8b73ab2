"""GPT-2, from its published description: a decoder-only transformer of pre-norm blocks (Radford et al. 2019).

Modules stand in the order in which a token meets them, parameters carry the names and shapes of the published weights,
so that reading or writing a Hugging Face GPT-2 folder (config.json + model.safetensors) is a copy without renaming.
Nothing here knows of text, roles or training.
"""
import json
import math
import mmap
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


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
        self.layer, self.n_head, self.dropout = layer, config.n_head, config.dropout
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def forward(self, x, cache=None):
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, n_head, T, head_dim)
                   for part in self.c_attn(x).split(C, dim=2))
        dropout = self.dropout if self.training else 0.0
        if cache is None:
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        else:
            k, v = cache.update(self.layer, k, v)  # (B, n_head, upto, head_dim)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=cache.mask)
        return F.dropout(self.c_proj(y.transpose(1, 2).reshape(B, T, C)), dropout)


class MLP(nn.Module):
    """Two matrices with GPT-2's GELU (the tanh approximation) between them."""

    def __init__(self, config):
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        x = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return F.dropout(x, self.dropout, self.training)


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
    makes it logits (N, vocab_size), since the head is a third of GPT-2 small's work. With a `cache` that was told by
    `cache.place` where these tokens stand, the tokens before them are not read again.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=1e-5)

    def forward(self, ids, at=None, cache=None):
        B, T = ids.shape
        positions = torch.arange(T, device=ids.device) if cache is None else cache.positions
        x = self.wte(ids) + self.wpe(positions)  # (B, T, n_embd)
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.h:
            x = block(x, cache)
        if at is not None:
            x = x.view(B * T, -1)[at]  # (N, n_embd)
        return F.linear(self.ln_f(x), self.wte.weight)

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
        frequency = 10000 ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(self.config.block_size)[:, None] * frequency  # (block_size, half)
        self.wpe.weight[:, :2 * half] = 0.03 * torch.cat([angle.sin(), angle.cos()], dim=1).to(self.wpe.weight)
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

    def save(self, folder):
        """Write config.json and model.safetensors into `folder`, as transformers' GPT2LMHeadModel does."""
        c = self.config
        config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": c.vocab_size,
                  "n_positions": c.block_size, "n_ctx": c.block_size, "n_embd": c.n_embd, "n_layer": c.n_layer,
                  "n_head": c.n_head, "n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
                  "resid_pdrop": c.dropout, "embd_pdrop": c.dropout, "attn_pdrop": c.dropout,
                  "tie_word_embeddings": True, "bos_token_id": c.vocab_size - 1, "eos_token_id": c.vocab_size - 1,
                  "torch_dtype": "float32"}
        Path(folder, "config.json").write_text(json.dumps(config, indent=2) + "\n")
        write_safetensors(Path(folder, "model.safetensors"), {f"transformer.{name}": p for name, p in self.named_parameters()})

    @classmethod
    def open(cls, folder):
        """Read a GPT-2 folder in Hugging Face's layout into float32 on the CPU.

        Raises ValueError, one line that names the file and the field, for a folder that is not such a GPT-2.
        """
        config_file, weights_file = Path(folder) / "config.json", Path(folder) / "model.safetensors"
        try:
            found = json.loads(config_file.read_text(encoding="utf-8"))
        except ValueError:
            raise ValueError(f"{config_file}: not a JSON file")
        try:
            sizes = {ours: int(found[theirs]) for ours, theirs in (
                ("vocab_size", "vocab_size"), ("block_size", "n_positions"), ("n_layer", "n_layer"),
                ("n_head", "n_head"), ("n_embd", "n_embd"))}
        except (KeyError, TypeError, ValueError) as e:
            raise ValueError(f"{config_file}: {e} is missing or not a number")
        if min(sizes.values()) < 1 or sizes["n_embd"] % sizes["n_head"]:
            raise ValueError(f"{config_file}: impossible sizes {sizes}")
        for field, allowed in (("model_type", ("gpt2",)), ("activation_function", ("gelu_new",)),
                               ("layer_norm_epsilon", (1e-5,)), ("n_inner", (None, 4 * sizes["n_embd"])),
                               ("tie_word_embeddings", (True,))):
            if found.get(field, allowed[0]) not in allowed:
                raise ValueError(f"{config_file}: {field} is {found[field]!r}, only {allowed[0]!r} is supported")
        with torch.device("meta"):
            model = cls(GPTConfig(**sizes))
        wanted = dict(model.named_parameters())
        weights = {}
        for name, tensor in read_safetensors(weights_file).items():
            name = name.removeprefix("transformer.")
            if name.endswith((".attn.bias", ".attn.masked_bias")) or name == "lm_head.weight":
                continue  # causal masks of old files, and the head, which is wte again
            if name not in wanted:
                raise ValueError(f"{weights_file}: unexpected tensor {name}")
            if tensor.shape != wanted[name].shape:
                raise ValueError(f"{weights_file}: {name} is {tuple(tensor.shape)}, "
                                 f"config.json says {tuple(wanted[name].shape)}")
            weights[name] = nn.Parameter(tensor.float())
        if missing := wanted.keys() - weights.keys():
            raise ValueError(f"{weights_file}: tensor {min(missing)} is missing")
        model.load_state_dict(weights, assign=True)
        return model


class KVCache:
    """Keys and values of every layer for a batch of rows, each row at a position of its own.

    Before a forward of ids (B, T), `place` says where its tokens stand: those of `rows[i]` at positions start[i],
    start[i] + 1, ... A row with fewer than T tokens is padded on the right; what its padding leaves behind lies beyond the
    row's end, where nothing looks before the row's next tokens overwrite it.
    """

    def __init__(self, config, rows, device="cpu", dtype=torch.float32):
        # one position more than the block: padding that would stand beyond the block is written there
        shape = (config.n_layer, rows, config.n_head, config.block_size + 1, config.n_embd // config.n_head)
        self.block_size = config.block_size
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)

    def place(self, start, T, upto, rows=None):
        """Say where the next forward's tokens stand.

        start (B,) int64, the position of each row's first token; T tokens a row; no key at or beyond position `upto` is
        looked at (int, at least the largest start + number of real tokens); rows (B,) int64, the rows of the cache that
        take part, all of them if None.
        """
        places = start[:, None] + torch.arange(T, device=start.device)  # (B, T)
        self.rows = slice(None) if rows is None else rows
        self.write_rows = torch.arange(self.k.shape[1], device=start.device) if rows is None else rows
        self.write_at = places.clamp(max=self.block_size)
        self.positions = places.clamp(max=self.block_size - 1)
        self.upto = upto
        # a query sees every key up to its own position: (B, 1, T, upto)
        self.mask = (torch.arange(upto, device=start.device) <= places[:, :, None])[:, None]

    def update(self, layer, k, v):
        """Store one layer's new k, v (B, n_head, T, head_dim); return all keys and values (B, n_head, upto, head_dim)."""
        where = (self.write_rows[:, None], slice(None), self.write_at)
        self.k[layer][where] = k.transpose(1, 2).to(self.k.dtype)  # the indexed dimensions come first: (B, T, n_head, head_dim)
        self.v[layer][where] = v.transpose(1, 2).to(self.v.dtype)
        return self.k[layer, self.rows, :, :self.upto], self.v[layer, self.rows, :, :self.upto]


# ---- float32 products ----------------------------------------------------------------------------------------------------

def set_precision(device):
    """Choose the fastest float32 products: TF32 on a GPU, on a CPU what rounds as float32 does.

    Returns up to which length (tokens) attention is faster as plain products than by PyTorch's fused kernel; 0 for none.

    PyTorch lets MKL do float32 products, whose AVX-512 kernels are for Intel's CPUs alone; "medium" turns to oneDNN, which is
    twice as fast on others. It may also round to bfloat16 (where the CPU has AMX): so the outcome is looked at. The fused
    kernel calls oneDNN in small pieces, which does not pay for short sequences.
    """
    if device.type != "cpu":
        torch.set_float32_matmul_precision("high")
        return 0
    torch.set_flush_denormal(True)  # a small model's gradients meet numbers that a CPU multiplies a hundred times slower
    a = torch.rand(256, 256, generator=torch.Generator().manual_seed(0))
    mkl, exact = a @ a, a.double() @ a.double()
    torch.set_float32_matmul_precision("medium")
    if not torch.equal(a @ a, mkl) and torch.allclose((a @ a).double(), exact, rtol=1e-5):
        return 512
    torch.set_float32_matmul_precision("highest")
    return 0


# ---- safetensors: eight bytes of header length, a JSON header, raw little-endian tensors ------------------------------

SAFETENSORS_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_safetensors(path):
    """Read a safetensors file into {name: tensor}; the tensors are views of a private memory map of the file.

    Raises ValueError, one line that names the file, where header, dtypes, shapes or offsets do not fit each other or the
    file's size, before any tensor is made.
    """
    with open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        if size < 8:
            raise ValueError(f"{path}: not a safetensors file, only {size} bytes")
        data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)
    start = 8 + int.from_bytes(data[:8], "little")
    if start > size:
        raise ValueError(f"{path}: the header would end at byte {start}, the file ends at {size}")
    try:
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        entries = {name: (SAFETENSORS_DTYPES.get(e["dtype"]), e["dtype"], e["shape"], *e["data_offsets"])
                   for name, e in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError(f"{path}: broken safetensors header")
    end = 0
    for name, (_, _, shape, first, last) in entries.items():
        if not all(type(n) is int and n >= 0 for n in (*shape, first, last)):
            raise ValueError(f"{path}: tensor {name} has a broken shape or broken offsets")
    for name, (dtype, dtype_name, shape, first, last) in sorted(entries.items(), key=lambda item: item[1][3:]):
        if dtype is None:
            if name.endswith((".attn.bias", ".attn.masked_bias")):  # boolean masks of old files: skipped below
                end = last
                continue
            raise ValueError(f"{path}: tensor {name} has dtype {dtype_name}, supported: {', '.join(SAFETENSORS_DTYPES)}")
        if first != end or last - first != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{path}: tensor {name} of shape {shape} and {dtype_name} does not fit its bytes "
                             f"{first}-{last}")
        end = last
    if start + end != size:
        raise ValueError(f"{path}: {size} bytes long, its header describes {start + end}")
    return {name: torch.frombuffer(data, dtype=dtype, count=math.prod(shape), offset=start + first).view(shape)
            if math.prod(shape) else torch.empty(shape, dtype=dtype)
            for name, (dtype, _, shape, first, _) in entries.items() if dtype is not None}


def write_safetensors(path, tensors):
    """Write {name: float tensor} as a safetensors file."""
    names = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, t in tensors.items():
        header[name] = {"dtype": names[t.dtype], "shape": list(t.shape),
                        "data_offsets": [end, end := end + t.numel() * t.element_size()]}
    header = json.dumps(header, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # so that the tensors start aligned
    with open(path, "wb") as f:
        f.write(len(header).to_bytes(8, "little") + header)
        for t in tensors.values():
            f.write(t.detach().cpu().contiguous().view(torch.uint8).numpy().data)
