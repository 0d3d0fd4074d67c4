"""An MDS shard that MosaicML's own writer made (mosaicml-streaming 0.13.0), of two samples in ProLong's columns."""

from __future__ import annotations

import base64
import zlib

# input_ids are b"hello\0world" and the sentence below, eight times; a byte is an id, and 0 is the id 256. indices are
# [(0, 6), (6, 11)] and [(0, 312)]; length and domain are there, too.
MDS_TEXTS = ["hello", "world", "a second sample, of more than 255 ids: " * 8]
_COMPRESSED = (
    "c-rk$%TB{E5Okups?;L~u943Xf&eAzuOJke#BD76h-|04#Mkm8?8b|f12?X*G|qTDJG=5BIb-ZHV{8DtZW#OIt<$5ijkK-nlsyH0C?0u;o|gr;o$y|"
    "~A4X;4ZS}VTgg?QTa;z{iWpvI6Ws{{-EvOS6#@MKCI%sK6v7c85^^vOWsC8M)_d40k;AIHPS#YHbestc52xo3mZZATgVz34?8?B5&%l_f!x~}(kpr5"
    "6uoa$=@&vF5{0z5nSvdwc~Y(v-qR=XZ{3D5+G7JNtIp7f3?aIJ}dLkHpC)Onjt$u-oi>r4PG0D+=gin0{*dxt&)7^nq$OS(t@k+_+SB1wyYo-!<H72"
    "uwLXGQ(6*MYQUwq>?uwq>^e%!a=?TtEMn#=-"
)
MDS = zlib.decompress(base64.b85decode(_COMPRESSED))
