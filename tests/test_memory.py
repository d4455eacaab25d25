"""What every kind of frame pool has to do; each kind runs the same tests."""

import os

import pytest

from cuframes._core import Mapping
from cuframes.errors import ProtocolError
from cuframes.memory import HostPool
from cuframes.segment import create_memfd


class Conformance:
    """Subclasses name the pool."""

    pool_type = None

    @pytest.fixture
    def pool(self):
        pool = self.pool_type.create("conformance", 10_000, 4)
        yield pool
        pool.close()

    def test_slots_do_not_share_pages(self, pool):
        assert pool.stride >= 10_000
        assert pool.stride % 4096 == 0
        assert pool.mapping.size >= 4 * pool.stride

    def test_a_subscriber_maps_the_same_memory_read_only(self, pool):
        opened = self.pool_type.open(pool.descriptors()[0], 10_000, 4)
        assert opened.stride == pool.stride
        assert pool.mapping.writable
        assert not opened.mapping.writable

    def test_memory_outlives_the_pool(self, pool):
        opened = self.pool_type.open(pool.descriptors()[0], 10_000, 4)
        pool.close()
        pool.close()
        assert opened.mapping.size >= 4 * opened.stride

    def test_too_small_a_pool_is_refused(self, pool):
        with pytest.raises(ProtocolError, match="bytes"):
            self.pool_type.open(pool.descriptors()[0], 10_000, 16)

    def test_features_name_the_kind(self, pool):
        assert pool.features
        assert pool.kind


class TestHostPool(Conformance):
    pool_type = HostPool

    def test_unsealed_memory_is_refused(self, tmp_path):
        path = tmp_path / "pool"
        path.write_bytes(bytes(4 * 12288))
        fd = os.open(path, os.O_RDONLY)
        with pytest.raises(ProtocolError, match="not sealed"):
            HostPool.open(fd, 10_000, 4)
        os.close(fd)

    def test_sealed_memory_cannot_be_mapped_writable(self):
        fd, mapping = create_memfd("test", 8192)
        with pytest.raises(PermissionError):
            Mapping(fd, 8192, writable=True)
        assert Mapping(fd, 8192).size == mapping.size
        os.close(fd)


def test_mapping_errors_are_named(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    with pytest.raises(OSError, match="cannot map"):
        Mapping(fd, 0)
    os.close(fd)
