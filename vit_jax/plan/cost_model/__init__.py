"""Estimates of a compiled TPU program's time, from the compiler's text.

No TPU was available, and the compiler neither gives the time of a program nor looks
into kernels. So one optimistic estimate (hyb) and one conservative one (cyc) are made
from its cycles, its memory traffic and the schedules of the kernels; see estimate.py.

What they are worth: no estimate has been compared with a run on a TPU. They rank
programs on one chip, and differences below 5 %, or that only one of the two shows, mean
nothing. Neither stalls nor communication between devices are included, so they predict
no throughput and do not compare chips. The only comparison is with estimates of the
best published program by the same compiler, libtpu 0.0.52: for B/16 at 224 with 128
images per v5e chip ours takes 90.9 (hyb) and 113.7 ms (cyc), big_vision's 152 and
202 ms (docs/performance.md).

A similar program, configs/pretrain.py for B/16 without dropout, batch 512 on v5e:2x2,
is estimated at 91.5 and 114.3 ms, where its FLOPs at the chips' peak would take
68.5 ms. For it, extrapolating from models of 2 and 4 blocks instead of compiling all
12 gives a hyb 2.4 % and a cyc 2.2 % too long, the peak of memory within 0.2 % and its
traffic within 1 % (docs/planning.md).
"""
