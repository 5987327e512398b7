"""A descriptor pool of our own: the messages of the Open Inference Protocol are called the same in every program that
speaks it, and the process-wide pool takes each name once (a client library in the same process would be refused)."""

from __future__ import annotations

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
