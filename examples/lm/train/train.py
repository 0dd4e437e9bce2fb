"""Train the tiny byte-level models of this folder on text mixed with retrieval tasks; write their files.

The Llama (a llama2.c checkpoint): RMSNorm, interleaved rotary positions, grouped-query attention, SwiGLU, tied embedding,
BOS = 1 always first. The hybrid: the same, but some of its layers are gated delta nets, and the others attend to a window.

    train.py TEXT OUT.bin STAGES [--layers KIND,KIND,KIND,KIND] [--start START.bin] [--processes N]
             [--seconds LIMIT] [--constant SHARE] [--seed SEED]

TEXT     the first 95 % of this file is trained on, the rest is for validation
STAGES   JSON: [[steps, sequence length, batch, [share of each task], learning rate], ...]
         the tasks are text, needle, repeat, kv, far (see `sample`); missing shares at the end are 0
--layers delta, window or full (the default: a Llama)
--start  a model to begin from: of layers of another kind only the feed-forward parts are taken
--processes  that share each batch (2)
--seconds ends the run early, and the learning rate's schedule with it
--constant  the share of the run before the learning rate begins to fall (0.5)

It needs Python, NumPy and PyTorch (1.13 is enough; on Debian python3-torch, with libopenblas0-pthread, because the default
BLAS is ten times slower) and attention.c and delta.c, compiled, beside it:

    gcc -O3 -march=native -mprefer-vector-width=512 -ffast-math -fopenmp -shared -fPIC attention.c delta.c \\
        -o kernels.so -lm

Set OMP_NUM_THREADS=1 and OPENBLAS_NUM_THREADS=1: it is the processes that work side by side. MODEL.md lists the
runs that made model.bin and hybrid.bin, and what they learned."""
import argparse
import ctypes
import json
import math
import multiprocessing
import os
import struct
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

DIM, LAYERS, HEADS, KV_HEADS, HIDDEN, VOCAB, CONTEXT = 128, 4, 8, 4, 344, 256, 1024
HEAD_DIM = DIM // HEADS
THETA = 10000.0
BOS = 1
SHAPE = (DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, CONTEXT)      # the header of a llama2.c checkpoint
# of hybrids: tokens an attention layer sees, heads of a delta layer and their dim, width of its convolutions
WINDOW, DELTA_HEADS, DELTA_DIM, TAPS = 128, 2, 64, 4
HYBRID = b'lattn-hybrid' + struct.pack('i', 1)                      # what such a file begins with: a name, a version
KINDS = ['full', 'window', 'delta']


# ---- data -----------------------------------------------------------------------------------------------------------

TASKS = ['text', 'needle', 'repeat', 'kv', 'far']
LETTERS = np.frombuffer(b'abcdefghijklmnopqrstuvwxyz', dtype=np.uint8)
CANNOT_KNOW = 0.05              # loss weight of a byte that nothing predicts: a random letter said for the first time
CUE = 3                         # letters of a pass phrase that are given; those after it can be retrieved
RECALL = {'repeat': 2.0, 'needle': 4.0, 'kv': 4.0, 'far': 25.0}      # loss weight of a byte that retrieval predicts


def split(path):
    """(training text, validation text), as arrays of bytes"""
    with open(path, 'rb') as f:
        text = np.frombuffer(f.read(), dtype=np.uint8)
    cut = len(text) * 19 // 20
    return text[:cut], text[cut:]


def text_span(rng, n, text):
    """n consecutive bytes from a random place"""
    i = rng.integers(0, len(text) - n - 1)
    return text[i:i + n]


def framed(phrase):
    """<phrase>"""
    return np.concatenate([np.frombuffer(b'<', np.uint8), phrase, np.frombuffer(b'>', np.uint8)])


def sample(rng, kind, n, text, min_distance=None):
    """One sequence: tokens [n + 1], and loss weights [n], of which number i belongs to predicting token i + 1.

    text    plain text
    repeat  random strings, said again at random lags (induction)
    kv      pass phrases <...> of random letters back to back, most of them said before
    needle  the same, with short spans of text between them
    far     one span of text with one to ten pass phrases, each planted once and asked for once, mostly of twelve
            different letters; the distance from planting to asking is uniform (from min_distance on), or short"""
    x = np.empty(n + 1, dtype=np.int64)
    w = np.ones(n, dtype=np.float32)
    x[0] = BOS
    if kind == 'text':
        x[1:] = text_span(rng, n, text)
    elif kind == 'repeat':
        pos, old, longest = 1, [], min(48, n // 4)
        while pos < n + 1:
            again = old and rng.random() < 0.6
            if again:
                seg = old[rng.integers(len(old))]
                lo = int(rng.integers(0, len(seg) // 2 + 1))
                seg = seg[lo:lo + int(rng.integers(4, longest + 1))]
            else:
                seg = rng.choice(LETTERS, int(rng.integers(4, longest + 1)))
                old.append(seg)
            seg = seg[:n + 1 - pos]
            x[pos:pos + len(seg)] = seg
            w[pos - 1:pos - 1 + len(seg)] = CANNOT_KNOW
            if again:
                w[pos + 1:pos - 1 + len(seg)] = RECALL[kind]
            pos += len(seg)
    elif kind in ('needle', 'kv'):
        pos, old = 1, []
        while pos < n + 1:
            again = old and rng.random() < 0.6
            if again:
                phrase = old[rng.integers(len(old))]
            else:
                phrase = rng.choice(LETTERS, int(rng.integers(8, 15)))
                old.append(phrase)
            seg = framed(phrase)[:n + 1 - pos]
            x[pos:pos + len(seg)] = seg
            w[pos - 1:pos - 1 + len(seg)] = CANNOT_KNOW
            if again:
                w[pos + CUE:pos - 1 + len(seg)] = RECALL[kind]
            pos += len(seg)
            if kind == 'needle' and pos < n + 1:
                m = int(min(rng.integers(4, max(9, n // 4)), n + 1 - pos))
                x[pos:pos + m] = text_span(rng, m, text)
                pos += m
    elif kind == 'far':
        x[1:] = text_span(rng, n, text)
        free = np.ones(n + 1, bool)
        free[0] = False
        for _ in range(int(rng.integers(1, 11))):
            different = rng.random() < 0.75                     # letters
            size = 12 if rng.random() < 0.75 else int(rng.integers(8, 15))
            seg = framed(rng.choice(LETTERS, size, replace=not different))
            size = len(seg)
            for _ in range(20):                                 # look for two free places that far apart
                if min_distance or rng.random() < 0.7:
                    d = int(rng.integers(min_distance or size, n - size))
                else:
                    d = int(rng.integers(size, min(120, n - size)))
                plant = int(rng.integers(1, n + 2 - size - d))
                ask = plant + d
                if free[plant:plant + size].all() and free[ask:ask + size].all():
                    for pos in (plant, ask):
                        x[pos:pos + size] = seg
                        free[pos:pos + size] = False
                        w[pos - 1:pos - 1 + size] = CANNOT_KNOW
                    w[ask + CUE:ask - 1 + size] = RECALL[kind]
                    break
    return x, w


def batch(rng, size, n, text, kind=None, mix=None, min_distance=None):
    """inputs, targets and loss weights, each [size, n]; of one kind, or of kinds drawn by their shares in mix"""
    rows = [sample(rng, kind or rng.choice(TASKS, p=mix), n, text, min_distance) for _ in range(size)]
    x = torch.from_numpy(np.stack([r[0] for r in rows]))
    w = torch.from_numpy(np.stack([r[1] for r in rows]))
    return x[:, :-1], x[:, 1:], w


# ---- model ----------------------------------------------------------------------------------------------------------

def kernel(name, tensors, sizes, dim):
    """calls a function of attention.c or delta.c"""
    if kernel.lib is None:
        kernel.lib = ctypes.CDLL(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'kernels.so'))
    getattr(kernel.lib, name)(*[ctypes.c_void_p(t.data_ptr()) for t in tensors], *[ctypes.c_long(s) for s in sizes],
                              ctypes.c_float(1 / math.sqrt(dim)))


kernel.lib = None


class Attention(torch.autograd.Function):
    """Causal attention by attention.c over the last `window` tokens: q [B,T,H,D], k and v [B,T,G,D]. (Torch's own bmm is
    slow for 16-wide heads.)"""
    @staticmethod
    def forward(ctx, q, k, v, window):
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        B, T, H, D = q.shape
        assert D == 16, 'attention.c is written for head dim 16'
        ctx.sizes = (B, T, H, k.shape[2], window)
        out, lse = torch.empty_like(q), torch.empty(B, H, T)
        kernel('forward', (q, k, v, out, lse), ctx.sizes, D)
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, out, lse = ctx.saved_tensors
        gq, gk, gv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        kernel('backward', (q, k, v, out, lse, grad.contiguous(), gq, gk, gv), ctx.sizes, q.shape[3])
        return gq, gk, gv, None


class DeltaRule(torch.autograd.Function):
    """The gated delta rule by delta.c: q, k, v [B,T,H,D], log decay g and write strength beta [B,T,H]."""
    @staticmethod
    def forward(ctx, *inputs):
        inputs = [x.contiguous() for x in inputs]
        B, T, H, D = inputs[0].shape
        out, kept = torch.empty_like(inputs[0]), torch.empty(B * H, (T + 31) // 32, D, D)
        kernel('delta_forward', (*inputs, out, kept), (B, T, H), D)
        ctx.save_for_backward(*inputs, kept)
        return out

    @staticmethod
    def backward(ctx, grad):
        *inputs, kept = ctx.saved_tensors
        B, T, H, D = inputs[0].shape
        grads = [torch.empty_like(x) for x in inputs]
        kernel('delta_backward', (*inputs, kept, grad.contiguous(), *grads), (B, T, H), D)
        return tuple(grads)


class RMSNorm(nn.Module):
    def __init__(self, dim=DIM):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


def rotate(x, positions):
    """rotary positions on x [B,T,heads,HEAD_DIM], pairs interleaved as in llama2.c"""
    t = positions[:, None].float() * (THETA ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM))[None]
    cos, sin = t.cos()[None, :, None, :], t.sin()[None, :, None, :]
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


def unit(x):
    """x / |x| along the last axis"""
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6)


def linear(i, o):
    return nn.Linear(i, o, bias=False)


class Block(nn.Module):
    """A layer without its mixer of tokens, which adds wo and what comes before."""
    def __init__(self):
        super().__init__()
        self.wo = linear(DIM, DIM)
        self.w1, self.w2, self.w3 = linear(DIM, HIDDEN), linear(HIDDEN, DIM), linear(DIM, HIDDEN)
        self.n1, self.n2 = RMSNorm(), RMSNorm()

    def rest(self, x, out):
        """what follows the mixer"""
        x = x + self.wo(out.reshape(x.shape))
        h = self.n2(x)
        return x + self.w2(F.silu(self.w1(h)) * self.w3(h))


class AttentionBlock(Block):
    """Attention, over all tokens or over the last WINDOW."""
    in_file = ['n1.weight', 'wq.weight', 'wk.weight', 'wv.weight', 'wo.weight']

    def __init__(self, window):
        super().__init__()
        self.window = window
        self.wq, self.wk = linear(DIM, DIM), linear(DIM, KV_HEADS * HEAD_DIM)
        self.wv = linear(DIM, KV_HEADS * HEAD_DIM)

    def qkv(self, x):
        """queries, keys (neither rotated yet) and values"""
        B, T, _ = x.shape
        h = self.n1(x)
        return (self.wq(h).view(B, T, HEADS, HEAD_DIM), self.wk(h).view(B, T, KV_HEADS, HEAD_DIM),
                self.wv(h).view(B, T, KV_HEADS, HEAD_DIM))

    def forward(self, x):
        positions = torch.arange(x.shape[1])
        q, k, v = self.qkv(x)
        return self.rest(x, Attention.apply(rotate(q, positions), rotate(k, positions), v, self.window))


class DeltaBlock(Block):
    """A gated delta net, as Qwen3-Next has it."""
    in_file = ['n1.weight', 'wq.weight', 'wk.weight', 'wv.weight', 'wz.weight', 'wa.weight', 'wb.weight', 'conv',
               'log_rate', 'bias', 'norm.weight', 'wo.weight']

    def __init__(self):
        super().__init__()
        self.wq, self.wk, self.wv, self.wz = (linear(DIM, DIM) for _ in range(4))
        self.wa, self.wb = linear(DIM, DELTA_HEADS), linear(DIM, DELTA_HEADS)
        # It begins as what looks up the present token among those before and says what followed it (induction): the last
        # tap, of the token itself, for queries and values, the one before it for keys, and one matrix for both.
        self.conv = nn.Parameter(torch.randn(3 * DIM, TAPS) / 10)
        with torch.no_grad():
            for part, tap in enumerate((3, 2, 3)):
                self.conv[part * DIM:(part + 1) * DIM, tap] += 1
        self.log_rate = nn.Parameter(torch.zeros(DELTA_HEADS))
        # the decay a token starts at about 0.01 for the first head, and slower for the others
        start = torch.logspace(-2, -3, DELTA_HEADS)
        self.bias = nn.Parameter(torch.log(torch.expm1(start)))
        self.norm = RMSNorm(DELTA_DIM)

    def forward(self, x):
        B, T, _ = x.shape
        h = self.n1(x)
        y = F.pad(torch.cat((self.wq(h), self.wk(h), self.wv(h)), -1), (0, 0, TAPS - 1, 0))
        y = F.silu(sum(y[:, i:i + T] * self.conv[:, i] for i in range(TAPS)))
        q, k, v = y.view(B, T, 3, DELTA_HEADS, DELTA_DIM).unbind(2)
        g = -self.log_rate.exp() * F.softplus(self.wa(h) + self.bias)
        out = self.norm(DeltaRule.apply(unit(q), unit(k), v, g, torch.sigmoid(self.wb(h))))
        return self.rest(x, out.reshape(x.shape) * F.silu(self.wz(h)))


class Model(nn.Module):
    """layers: of each layer 'full' (attention), 'window' (attention) or 'delta'. Without any of the last two it is a
    Llama."""
    def __init__(self, layers=None):
        super().__init__()
        self.layers = layers or ['full'] * LAYERS
        self.emb = nn.Embedding(VOCAB, DIM)
        kinds = {'full': lambda: AttentionBlock(1 << 30), 'window': lambda: AttentionBlock(WINDOW), 'delta': DeltaBlock}
        self.blocks = nn.ModuleList(kinds[kind]() for kind in self.layers)
        self.norm = RMSNorm()
        for name, p in self.named_parameters():
            if p.dim() == 2 and 'conv' not in name:
                nn.init.normal_(p, std=0.02 if 'emb' in name else 1 / math.sqrt(p.shape[1]))
            if name.endswith('wo.weight') or name.endswith('w2.weight'):
                nn.init.normal_(p, std=1 / math.sqrt(p.shape[1] * 2 * LAYERS))
        for b in self.blocks:
            if isinstance(b, DeltaBlock):
                b.wk.weight.data.copy_(b.wq.weight.data)

    def forward(self, tokens):
        x = self.emb(tokens)
        for b in self.blocks:
            x = b(x)
        return self.norm(x) @ self.emb.weight.t()

    def llama(self):
        return self.layers == ['full'] * LAYERS

    def in_file_order(self):
        """the parameters in the order of a llama2.c checkpoint, or of a hybrid (MODEL.md)"""
        feed_forward = ['n2.weight', 'w1.weight', 'w2.weight', 'w3.weight']
        yield self.emb.weight
        if self.llama():
            for name in AttentionBlock.in_file + feed_forward:
                for b in self.blocks:
                    yield b.get_parameter(name)
        else:
            for b in self.blocks:
                for name in b.in_file + feed_forward:
                    yield b.get_parameter(name)
        yield self.norm.weight

    def save(self, path):
        with open(path, 'wb') as f:
            if self.llama():
                f.write(struct.pack('7i', *SHAPE))
            else:
                f.write(HYBRID + struct.pack('12i', *SHAPE, WINDOW, DELTA_HEADS, DELTA_DIM, DELTA_DIM, TAPS))
                f.write(struct.pack('%di' % LAYERS, *[KINDS.index(kind) for kind in self.layers]))
            for p in self.in_file_order():
                f.write(p.detach().float().numpy().tobytes())
            if self.llama():
                f.write(np.zeros(CONTEXT * HEAD_DIM, np.float32).tobytes())     # the format's unused rotary tables

    @staticmethod
    def load(path):
        with open(path, 'rb') as f:
            data = f.read()
        at, model = 28, None
        if struct.unpack('7i', data[:28]) == SHAPE:
            model = Model()
        elif data.startswith(HYBRID):
            at = len(HYBRID) + 48
            if struct.unpack('12i', data[len(HYBRID):at]) == (*SHAPE, WINDOW, DELTA_HEADS, DELTA_DIM, DELTA_DIM, TAPS):
                model = Model([KINDS[kind] for kind in struct.unpack('%di' % LAYERS, data[at:at + 4 * LAYERS])])
                at += 4 * LAYERS
        if not model:
            raise SystemExit(path + ': a model of another shape')
        for p in model.in_file_order():
            p.data = torch.from_numpy(np.frombuffer(data, np.float32, p.numel(), at).copy()).view(p.shape)
            at += 4 * p.numel()
        return model

    def take(self, other):
        """takes over from another model what both have: layers of one kind wholly, of others the feed-forward part"""
        mine, theirs = dict(self.named_parameters()), dict(other.named_parameters())
        for name in mine.keys() & theirs.keys():
            layer = int(name.split('.')[1]) if name.startswith('blocks') else None
            same = layer is None or type(self.blocks[layer]) is type(other.blocks[layer])
            if same or name.split('.')[2] in ('n2', 'w1', 'w2', 'w3'):
                mine[name].data = theirs[name].data.clone()


# ---- training -------------------------------------------------------------------------------------------------------

MATRICES = ['wq', 'wk', 'wv', 'wz', 'wo', 'w1', 'w2', 'w3']


class Muon:
    """momentum whose update is made orthogonal by five Newton-Schulz steps; for the matrices"""
    def __init__(self, parameters):
        self.parameters = parameters
        self.momenta = [torch.zeros_like(p) for p in parameters]

    def step(self, lr):
        for p, m in zip(self.parameters, self.momenta):
            m.mul_(0.95).add_(p.grad)
            g = p.grad + 0.95 * m
            x = g / (g.norm() + 1e-7)
            tall = x.shape[0] > x.shape[1]
            if tall:
                x = x.t()
            for _ in range(5):
                a = x @ x.t()
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
            if tall:
                x = x.t()
            p.data.mul_(1 - lr * 0.01).add_(x, alpha=-lr * max(1, p.shape[0] / p.shape[1]) ** 0.5)


class Team:
    """Computes the gradients of the steps of a schedule: this process and args.processes - 1 others take equal parts of
    each batch, on one thread each. (Where other programs run too, threads spend much of their time waiting for each
    other, operation by operation; processes wait once a step.)"""
    def __init__(self, args, model, parameters, schedule, text):
        self.model, self.parameters, self.schedule, self.text = model, parameters, schedule, text
        self.n, self.at, self.seed = args.processes, 0, args.seed
        model.share_memory()
        self.grads = [[torch.zeros_like(p).share_memory_() for p in parameters] for _ in range(self.n)]
        context = multiprocessing.get_context('fork')
        self.go, self.ready = context.Barrier(self.n), context.Barrier(self.n)
        self.others = [context.Process(target=self.work, args=(i,), daemon=True) for i in range(1, self.n)]

    def __enter__(self):
        for process in self.others:
            process.start()
        return self

    def __exit__(self, *_):
        for process in self.others:
            process.terminate()

    def work(self, i):
        rng = np.random.default_rng([self.seed, i])
        while True:
            self.go.wait()
            self.part(i, rng)
            self.ready.wait()

    def part(self, i, rng):
        """the gradients of part i of the next step's batch; its loss"""
        _, n, size, mix, _ = self.schedule[self.at]
        self.at += 1
        x, y, w = batch(rng, size // self.n, n, self.text, mix=mix + [0.0] * (len(TASKS) - len(mix)))
        loss = F.cross_entropy(self.model(x).flatten(0, 1), y.flatten(), reduction='none')
        loss = (loss * w.flatten()).sum() / w.sum()
        for p in self.parameters:
            p.grad = None
        loss.backward()
        for g, p in zip(self.grads[i], self.parameters):
            g.copy_(p.grad)
        return loss.item()

    def step(self, rng):
        """one step; leaves the mean of the gradients in the parameters"""
        self.go.wait()
        loss = self.part(0, rng)
        self.ready.wait()
        for p, *grads in zip(self.parameters, *self.grads):
            p.grad = sum(grads) / self.n
        return loss


def progress(rng, model, text, n):
    """loss on validation text; accuracy a byte on what each retrieval task lets the model know"""
    out = {}
    with torch.no_grad():
        x, y, _ = batch(rng, 4, n, text, 'text')
        out['text'] = F.cross_entropy(model(x).flatten(0, 1), y.flatten()).item()
        for kind, size in (('needle', 6), ('kv', 6), ('far', 8), ('repeat', 6)):
            x, y, w = batch(rng, size, n, text, kind, min_distance=int(n * 0.7))
            out[kind] = (model(x).argmax(-1) == y)[w == RECALL[kind]].float().mean().item()
    return {k: round(v, 3) for k, v in out.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('text')
    parser.add_argument('out')
    parser.add_argument('stages', type=json.loads)
    parser.add_argument('--start')
    parser.add_argument('--layers', default=','.join(['full'] * LAYERS))
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument('--seconds', type=float, default=math.inf)
    parser.add_argument('--constant', type=float, default=0.5)
    parser.add_argument('--seed', type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    train_text, val_text = split(args.text)
    model = Model(args.layers.split(','))
    if args.start:
        model.take(Model.load(args.start))
    print(sum(p.numel() for p in model.parameters()), 'parameters')
    def matrix(name): return name.endswith('weight') and name.split('.')[-2] in MATRICES
    matrices = [p for name, p in model.named_parameters() if matrix(name)]
    others = [p for name, p in model.named_parameters() if not matrix(name)]
    muon, adam = Muon(matrices), torch.optim.Adam(others, betas=(0.9, 0.95))

    schedule = [stage for stage in args.stages for _ in range(stage[0])]
    done, start = 0, time.time()
    with Team(args, model, list(model.parameters()), schedule, train_text) as team:
        for _, n, _, _, lr in schedule:
            at = max(done / len(schedule), (time.time() - start) / args.seconds)
            if at >= 1:
                break
            # the rate rises for 50 steps, is constant for a while, then falls to 2 %
            rate = 1 if at < args.constant else max(0.02, (1 - at) / (1 - args.constant))
            rate *= min(1, (done + 1) / 50)
            loss = team.step(rng)
            for group in adam.param_groups:
                group['lr'] = 0.003 * rate
            muon.step(lr * rate)
            adam.step()
            done += 1
            if done % 50 == 0:
                print(done, n, 'loss %.3f' % loss, progress(rng, model, val_text, n),
                      '%.2f s/step' % ((time.time() - start) / done), flush=True)
                model.save(args.out)
    model.save(args.out)
    print(done, 'steps')


if __name__ == '__main__':
    main()
