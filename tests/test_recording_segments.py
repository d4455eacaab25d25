"""Recording without an end: segments, their names, old files, and disks that are full, read-only or gone."""

import fcntl
import json
import os
import pickle
import re
import signal
import subprocess
import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from harness import eventually, in_namespace

from cuframes import PacketPublisher, PacketReader

av = pytest.importorskip("av")
pytest.importorskip("typer")

from recorded import Source, command, lines, probe, probe_packets, relative, steady  # noqa: E402

from cuframes.cli.units import parse_bytes, parse_duration  # noqa: E402
from cuframes.media import segments  # noqa: E402
from cuframes.media.patterns import Pattern  # noqa: E402
from cuframes.media.segments import Retention, SegmentedRecording  # noqa: E402

DAY = 86_400


def record_all(source, key, pattern, segment_s, **more):
    """Record all packets of a source; the recording, and the reports of its files."""
    reports = []
    with source.publisher(key) as publisher:
        reader = PacketReader(key, "next")
        source.publish(publisher)
        with reader, SegmentedRecording(pattern, reader, segment_s, finished=reports.append, **more) as recording:
            for _ in source.packets:
                recording.write(reader.next(0))
    return recording, reports


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_segments_have_every_packet_once_and_play_alone(key, encoded, tmp_path, codec, suffix):
    source = Source(encoded(codec, ".mp4"))
    pattern = Pattern(f"{tmp_path}/%Y-%m-%d/%H:%M:%S{suffix}")
    recording, reports = record_all(source, key, pattern, 0.96)  # two groups of pictures
    assert [report.packets for report in reports] == [24, 24, 24, 24]
    assert [report.path for report in reports] == recording.paths
    assert recording.lost == recording.unwritten == 0
    found = []
    for number, report in enumerate(reports):
        packets, frames = probe(report.path)
        assert frames == 24
        expected = relative(source.packets[24 * number : 24 * (number + 1)])
        assert [packet[1] for packet in packets] == [packet[1] for packet in expected]
        assert packets[0][3]
        with av.open(str(report.path)) as container:
            assert container.streams.video[0].start_time == 0 or suffix == ".ts"
        found += [packet[0] for packet in packets]
    if suffix != ".ts":  # which has start codes instead of lengths
        assert found == [packet[0] for packet in source.packets]
    assert all(abs(report.begun_ns - time.time_ns()) < 60e9 for report in reports)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_segments_go_on_after_a_damaged_keyframe(key, encoded, tmp_path, codec, suffix, caplog):
    """One at the beginning, and one with which a segment would begin."""
    source = Source(encoded(codec, ".ts")).damage(0, 36)
    recording, reports = record_all(source, key, Pattern(f"{tmp_path}/%S%f{suffix}"), 0.96)
    assert recording.packets + recording.unwritten == len(source.packets) == 96
    assert recording.unwritten <= 2 * 12  # a group of pictures each
    assert "damaged" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in recording.paths)
    assert probe(reports[-1].path)[1] == reports[-1].packets
    found = sum(len(probe_packets(report.path)) for report in reports)
    assert recording.packets - 1 <= found <= recording.packets  # of the noise, MP4 and MKV keep what looks like units


def test_segments_of_a_process(key, encoded, tmp_path):
    """The command: a line when it is ready, a line for each file; files by the clock, in folders that it makes."""
    source = Source(encoded("h264", ".mp4"))
    with steady(source, key):
        child = subprocess.Popen(
            command("record", key, "rec/%Y-%m-%d/%H:%M:%S-%%.mkv", "--segment", 1, "--json", "--utc"),
            stdout=subprocess.PIPE, text=True, cwd=tmp_path,
        )  # fmt: skip
        told = [json.loads(child.stdout.readline()) for _ in range(3)]
        child.send_signal(signal.SIGTERM)
        rest, _ = child.communicate(timeout=30)
    assert child.returncode == 128 + signal.SIGTERM
    told += lines(rest)
    assert [line["event"] for line in told] == ["ready", *["segment"] * (len(told) - 2), "end"]
    assert told[0]["codec"] == "h264"
    files = told[1:-1]
    for file in files:
        begun = datetime.fromisoformat(file["begun"])
        assert begun.tzinfo == UTC
        assert file["path"] == begun.strftime("rec/%Y-%m-%d/%H:%M:%S-%%.mkv")
    for file, after in pairwise(files):
        assert file["duration_s"] >= 0.9
        assert datetime.fromisoformat(after["begun"]) > datetime.fromisoformat(file["begun"])
    assert sum(file["packets"] for file in files) == told[-1]["packets"]
    assert told[-1]["lost"] == told[-1]["unwritten"] == 0
    found = [bytes(packet) for file in files for packet in probe_packets(tmp_path / file["path"])]
    published = [packet[0] for packet in source.packets]
    first = published.index(found[0])
    assert found == [published[(first + at) % len(published)] for at in range(len(found))]


def test_a_single_recording_can_be_named_by_the_time(key, encoded, tmp_path):
    source = Source(encoded("h264", ".mp4"))
    with source.publisher(key) as publisher:
        source.publish(publisher)
        for option, name in (("--utc", "ev-%Y-100%%.mkv"), ("--overwrite", "ev-%Y.mkv")):
            done = subprocess.run(
                command("record", key, name, "--pre", 100, "--seconds", 0, option),
                capture_output=True, text=True, timeout=60, cwd=tmp_path,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
    years = {datetime.now(UTC).year, datetime.now(UTC).year - 1}
    first, second = sorted(os.listdir(tmp_path))
    assert first == "ev-%Y.mkv"
    assert second in {f"ev-{year}-100%.mkv" for year in years}


def test_names(monkeypatch):
    at = int(datetime(2026, 7, 1, 22, 30, 5, tzinfo=UTC).timestamp() * 1e9)
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert str(Pattern("%Y-%m-%d/%H-%M-%S.ts", utc=True).path(at)) == "2026-07-01/22-30-05.ts"
        assert str(Pattern("%Y-%m-%d/%H-%M-%S%z.ts").path(at)) == "2026-07-02/00-30-05+0200.ts"
        assert str(Pattern("%F %T %%F.ts", utc=True).path(at)) == "2026-07-01 22:30:05 %F.ts"
    finally:
        monkeypatch.undo()
        time.tzset()
    assert str(Pattern("/a/cam:1/100%%.mkv").path(at)) == "/a/cam:1/100%.mkv"
    for text in ("%Q.ts", "%-d.ts", "100%"):
        with pytest.raises(ValueError, match="is not understood; use %Y"):
            Pattern(text)


def test_files_are_found_by_the_names_that_the_pattern_gives(tmp_path):
    pattern = Pattern(f"{tmp_path}/cam (1)/%Y/%Y-%m-%d/%H%M%S.mkv")
    own = [
        "cam (1)/2026/2026-01-31/235959.mkv",
        "cam (1)/2026/2026-01-31/235959-2.mkv",
        "cam (1)/2026/2026-01-31/235959-12.mkv",
    ]
    foreign = [
        "cam (1)/2026/2025-01-31/235959.mkv",  # another year
        "cam (1)/2026/2026-13-31/235959.mkv",
        "cam (1)/2026/2026-01-31/245959.mkv",
        "cam (1)/2026/2026-01-31/235959.mkv.part",
        "cam (1)/2026/2026-01-31/235959-1.mkv",
        "cam (1)/2026/2026-01-31/235959-02.mkv",
        "cam (1)/2026/2026-01-31/x235959.mkv",
        "cam (1)/2026/2026-01-31/235959xmkv",
        "cam (1)/2026/2026-01-31/deeper/235959.mkv",
        "cam (1)/2026/235959.mkv",
        "cam (2)/2026/2026-01-31/235959.mkv",
    ]
    for name in own + foreign:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / "cam (1)/2026/2026-02-01").symlink_to("2026-01-31")
    (tmp_path / "cam (1)/2026/2026-01-31/000000.mkv").symlink_to("235959.mkv")
    (tmp_path / "cam (1)/2026/2026-01-31/000001.mkv").mkdir()
    os.mkfifo(tmp_path / "cam (1)/2026/2026-01-31/000002.mkv")
    found = pattern.files()
    assert {str(file.path.relative_to(tmp_path)) for file in found} == set(own)
    assert {file.size for file in found} == {5}
    assert Pattern(f"{tmp_path}/nothing/%H.mkv").files() == []


def make_old(folder, days, size=1000):
    path = folder / time.strftime("%Y-%m-%d/%H-%M-%S.ts", time.gmtime(time.time() - days * DAY))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - days * DAY,) * 2)
    return path


def test_retention_by_age(tmp_path):
    old, new = [make_old(tmp_path, days) for days in (30, 8)], [make_old(tmp_path, days) for days in (6, 0)]
    beside = old[0].with_name("holiday.ts")
    beside.write_bytes(b"mine")
    os.utime(beside, (0, 0))
    link = old[1].with_name("00-00-00.ts")
    link.symlink_to(new[0])
    Retention(Pattern(f"{tmp_path}/%Y-%m-%d/%H-%M-%S.ts"), keep_s=7 * DAY).apply()
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in (*new, beside))
    assert link.is_symlink()


def test_retention_by_size_removes_the_oldest_and_folders_that_are_empty(tmp_path):
    files = [make_old(tmp_path / "cam", days) for days in (5, 4, 3, 2)]
    (tmp_path / "cam" / "notes").mkdir()
    retention = Retention(Pattern(f"{tmp_path}/cam/%Y-%m-%d/%H-%M-%S.ts"), max_size=2500)
    retention.apply()
    assert [path.exists() for path in files] == [False, False, True, True]
    assert [path.parent.exists() for path in files] == [False, False, True, True]
    assert (tmp_path / "cam" / "notes").exists()
    retention = Retention(Pattern(f"{tmp_path}/cam/%Y-%m-%d/%H-%M-%S.ts"), max_size=1)
    with open(files[2], "ab") as being_written:
        fcntl.flock(being_written, fcntl.LOCK_EX)
        retention.apply(newest=files[3])
        assert [path.exists() for path in files] == [False, False, True, True]
    retention.apply()
    assert not any(path.exists() for path in files)
    assert (tmp_path / "cam").exists()


def test_retention_of_a_recording(key, encoded, tmp_path, monkeypatch):
    """It keeps the sum of its files, and never removes the file that it is writing."""
    monkeypatch.setattr(segments, "LOOK_SECONDS", 0.0)
    source = Source(encoded("h264", ".mp4"))
    older, foreign = make_old(tmp_path, 3), tmp_path / "2020-01-01" / "x.ts"
    foreign.parent.mkdir()
    foreign.write_bytes(bytes(10_000_000))
    pattern = Pattern(f"{tmp_path}/%Y-%m-%d/%H-%M-%S.ts")
    sizes = []
    reports = []
    with source.publisher(key) as publisher, PacketReader(key, "next") as reader:
        with SegmentedRecording(
            pattern, reader, 0.48, retention=Retention(pattern, max_size=60_000), finished=reports.append
        ) as recording:
            for at in range(len(source.packets)):
                source.publish(publisher, at, at + 1)
                recording.write(reader.next(0))
                sizes.append(sum(file.size for file in pattern.files()))
                assert recording.paths[-1].exists()
    assert len(reports) == 8
    assert not older.exists()
    assert foreign.exists()
    kept = pattern.files()
    assert 0 < sum(file.size for file in kept) <= 60_000
    assert [file.path for file in kept] == recording.paths[-len(kept) :]


def test_files_with_one_name_are_numbered(key, encoded, tmp_path):
    source = Source(encoded("h264", ".mp4"))
    (tmp_path / "cam.mkv").write_bytes(b"somebody's")
    (tmp_path / "cam-3.mkv").write_bytes(b"somebody's")
    recording, reports = record_all(source, key, Pattern(f"{tmp_path}/cam.mkv"), 0.96)
    assert [path.name for path in recording.paths] == ["cam-2.mkv", "cam-4.mkv", "cam-5.mkv", "cam-6.mkv"]
    assert sum(report.packets for report in reports) == len(source.packets)
    assert (tmp_path / "cam.mkv").read_bytes() == (tmp_path / "cam-3.mkv").read_bytes() == b"somebody's"


def test_units():
    assert [parse_duration(text, "--keep") for text in ("600", "10min", "1h", "7d", "1.5m", "2 weeks")] == [
        600, 600, 3600, 7 * DAY, 90, 14 * DAY,
    ]  # fmt: skip
    assert [parse_bytes(text, "--max-size") for text in ("5", "500G", "1.5TB", "200MiB", "1ki", "7kb")] == [
        5, 500 * 10**9, 1_500_000_000_000, 200 << 20, 1024, 7000,
    ]  # fmt: skip
    for text in ("", "x", "-1", "0", "nan", "1e3", "7y"):
        with pytest.raises(ValueError, match="--keep must be a time such as"):
            parse_duration(text, "--keep")
    for text in ("", "x", "-1", "0", "inf", "1i", "5X"):
        with pytest.raises(ValueError, match="--max-size must be a size such as"):
            parse_bytes(text, "--max-size")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["%Y.mkv", "--segment", "soon"], "--segment must be a time such as 600"),
        (["x%Q.mkv", "--segment", "1h"], "'%Q' in 'x%Q.mkv' is not understood"),
        (["%Y.avi", "--segment", "1h"], "a recording must be a .mp4, .mov, .mkv, .ts file"),
        (["x.mkv", "--segment", "1h", "--keep", "1d"], "the file name must have a time in it"),
        (["x.mkv", "--keep", "1d"], "--keep needs --segment"),
        (["x.mkv", "--max-size", "1G"], "--max-size needs --segment"),
        (["x%Q.mkv", "--utc"], "'%Q' in 'x%Q.mkv' is not understood"),
        (["%Y.mkv", "--segment", "1h", "--overwrite"], "--overwrite cannot be used with --segment"),
        (["-", "--segment", "1h"], "--segment is for files, and - is standard output"),
        (["x.mkv", "--format-name", "nut"], "--format-name is for standard output"),
        (["-", "--format-name", "avi"], "--format-name must be mpegts, nut, mkv"),
    ],
)
def test_wrong_options_are_explained(key, tmp_path, arguments, message):
    with PacketPublisher(key, "h264"):
        done = subprocess.run(
            command("record", key, *arguments), capture_output=True, text=True, timeout=60, cwd=tmp_path
        )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not os.listdir(tmp_path)


# ---- disks


FULL_DISK = """
import json, pickle, subprocess, sys, time
from pathlib import Path
import cuframes
from cuframes.media import segments
from cuframes.media.patterns import Pattern
segments.RETRY_SECONDS = (0.0, 0.0)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", "{folder}"], check=True)
codec, extradata, packets = pickle.loads(Path("{source}").read_bytes())
told, reports, given = [], [], 0
with cuframes.PacketPublisher("full", codec, extradata=extradata, slots=64, data_size=1 << 20) as publisher:
    reader = cuframes.PacketReader("full", "next")
    def record(recording):
        global given
        shift = given // len(packets) * len(packets) * 40_000_000
        data, pts, dts, key = packets[given % len(packets)]
        publisher.publish_packet(data, pts_ns=pts + shift, dts_ns=dts + shift, keyframe=key)
        recording.write(reader.next(0))
        given += 1
    with segments.SegmentedRecording(
        Pattern("{folder}/%H-%M-%S{suffix}"), reader, 0.96, finished=reports.append, told=told.append
    ) as recording:
        while not told:
            record(recording)
        for _ in range(100):
            record(recording)
        assert len(told) == 1, told
        before = [str(path) for path in recording.paths]
        keep = Path("{kept}")
        keep.mkdir()
        for path in recording.paths:
            (keep / path.name).write_bytes(path.read_bytes())
            path.unlink()
        while len(told) < 2:
            record(recording)
        for _ in range(30):
            record(recording)
    for path in recording.paths:
        if path.exists():
            (keep / path.name).write_bytes(path.read_bytes())
print(json.dumps([told, given, recording.packets, recording.unwritten, before,
                  [[report.path.name, report.packets] for report in reports]]))
"""


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_segments_go_on_when_a_full_disk_has_room_again(encoded, tmp_path, suffix):
    source = Source(encoded("h264", ".mp4"))
    (tmp_path / "disk").mkdir()
    (tmp_path / "source").write_bytes(pickle.dumps((source.codec, source.extradata, source.packets)))
    script = FULL_DISK.format(
        folder=tmp_path / "disk", source=tmp_path / "source", kept=tmp_path / "kept", suffix=suffix
    )
    done = in_namespace(script, 8 << 20)
    assert done.returncode == 0, done.stderr
    told, given, packets, unwritten, before, reports = json.loads(done.stdout)
    assert re.search(rf"disk/[\d-]+{suffix}: No space left on device; recording goes on when", told[0])
    assert re.search(rf"disk/[\d-]+{suffix}: recording goes on; (\d+) packets in [\d.]+ s were lost", told[1])
    assert packets + unwritten == given
    assert unwritten >= 100
    assert sum(count for _, count in reports) == packets
    assert len(before) >= 2
    for name, count in reports:
        found, frames = probe(tmp_path / "kept" / name)
        assert len(found) == frames == count
        assert found[0][3]


def test_a_full_disk_ends_a_recording_with_an_error_that_names_the_file(encoded, tmp_path):
    """As a command, in a file system of its own."""
    source = Source(encoded("h264", ".mp4"))
    (tmp_path / "disk").mkdir()
    (tmp_path / "source").write_bytes(pickle.dumps((source.codec, source.extradata, source.packets)))
    script = """
        import json, pickle, subprocess, sys, time
        from pathlib import Path
        import cuframes
        disk = Path("{disk}")
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
        codec, extradata, packets = pickle.loads(Path("{source}").read_bytes())
        out = {{}}
        for suffix in (".mp4", ".mkv", ".ts"):
            with cuframes.PacketPublisher("full", codec, extradata=extradata, slots=256) as publisher:
                for data, pts, dts, key in packets:
                    publisher.publish_packet(data, pts_ns=pts, dts_ns=dts, keyframe=key)
                command = [sys.executable, "-m", "cuframes", "record", "full", str(disk / ("x" + suffix))]
                done = subprocess.run([*command, "--pre", "99", "--json"], capture_output=True, text=True, timeout=50)
            out[suffix] = [done.returncode, done.stdout, done.stderr]
            (Path("{kept}") / ("x" + suffix)).write_bytes((disk / ("x" + suffix)).read_bytes())
            (disk / ("x" + suffix)).unlink()
        print(json.dumps(out))
    """.format(disk=tmp_path / "disk", source=tmp_path / "source", kept=tmp_path)
    done = in_namespace(script, 32 << 20)
    assert done.returncode == 0, done.stderr
    for suffix, (status, out, errors) in json.loads(done.stdout).items():
        assert status == 1, errors
        path = tmp_path / "disk" / f"x{suffix}"
        report = lines(out)[-1]
        assert report["paths"] == [str(path)]
        assert errors == (
            f"cuframes: {path}: No space left on device; what was written before can be played: "
            f"{report['packets']} packets\n"
        )
        found, frames = probe(tmp_path / f"x{suffix}")
        assert len(found) == frames == report["packets"] >= 12
        assert [packet[1] for packet in found] == [packet[1] for packet in relative(source.packets)[: len(found)]]


def test_a_file_that_is_removed_ends_a_recording(key, encoded, tmp_path):
    source = Source(encoded("h264", ".mp4"))
    with steady(source, key):
        child = subprocess.Popen(
            command("record", key, "out.mkv", "--json"),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        )  # fmt: skip
        eventually(lambda: (tmp_path / "out.mkv").exists() and (tmp_path / "out.mkv").stat().st_size, timeout=30)
        (tmp_path / "out.mkv").unlink()
        out, errors = child.communicate(timeout=30)
    assert child.returncode == 1
    assert errors == "cuframes: out.mkv: the file was removed while it was being recorded; nothing was recorded\n"
    assert lines(out)[-1]["paths"] == []
    assert lines(out)[-1]["unwritten"] > 0


def test_segments_go_on_when_their_folder_is_removed(key, encoded, tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "RETRY_SECONDS", (0.0, 0.0))
    source = Source(encoded("h264", ".mp4"))
    told = []
    with source.publisher(key) as publisher, PacketReader(key, "next") as reader:
        source.publish(publisher)
        pattern = Pattern(f"{tmp_path}/rec/%Y/x.ts")
        with SegmentedRecording(pattern, reader, 60, told=told.append) as recording:
            for _ in range(30):
                recording.write(reader.next(0))
            lost = recording.paths[0]
            lost.unlink()
            lost.parent.rmdir()
            for _ in range(66):
                recording.write(reader.next(0))
    assert len(told) == 2
    assert f"{lost}: the file was removed" in told[0]
    assert "recording goes on; 36 packets" in told[1]
    assert recording.unwritten == 36
    assert [path.exists() for path in recording.paths] == [True]
    assert len(probe(recording.paths[0])[0]) == recording.packets == 60


def test_a_folder_that_cannot_be_written_is_an_error_at_once(encoded, tmp_path):
    source = Source(encoded("h264", ".mp4"))
    (tmp_path / "disk").mkdir()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "source").write_bytes(pickle.dumps((source.codec, source.extradata, source.packets)))
    script = f"""
        import json, pickle, subprocess, sys
        from pathlib import Path
        import cuframes
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", "{tmp_path}/disk"], check=True)
        codec, extradata, packets = pickle.loads(Path("{tmp_path}/source").read_bytes())
        out = []
        with cuframes.PacketPublisher("full", codec, extradata=extradata, slots=256, data_size=1 << 20) as publisher:
            for data, pts, dts, key in packets:
                publisher.publish_packet(data, pts_ns=pts, dts_ns=dts, keyframe=key)
            for arguments in (["disk/x.mkv"], ["disk/x.mkv", "--segment", "1"], ["file/x.mkv", "--segment", "1"]):
                command = [sys.executable, "-m", "cuframes", "record", "full", *arguments, "--json"]
                done = subprocess.run(command, capture_output=True, text=True, timeout=50, cwd="{tmp_path}")
                out.append([done.returncode, done.stderr])
        print(json.dumps(out))
    """
    done = in_namespace(script, 8 << 20)
    assert done.returncode == 0, done.stderr
    plain, segmented, blocked = json.loads(done.stdout)
    assert plain == segmented == [1, "cuframes: disk/x.mkv: Read-only file system; nothing was recorded\n"]
    assert blocked[0] == 1
    assert blocked[1].startswith("cuframes: file: ")
    assert Path(tmp_path / "file").read_bytes() == b""


def test_old_files_make_room_on_a_full_disk(encoded, tmp_path):
    """While nothing can be written, files still grow too old."""
    source = Source(encoded("h264", ".mp4"))
    (tmp_path / "disk").mkdir()
    (tmp_path / "source").write_bytes(pickle.dumps((source.codec, source.extradata, source.packets)))
    script = f"""
        import json, os, pickle, subprocess, time
        from pathlib import Path
        import cuframes
        from cuframes.media import segments
        from cuframes.media.patterns import Pattern
        segments.RETRY_SECONDS = (0.0, 0.0)
        segments.LOOK_SECONDS = 0.0
        folder = Path("{tmp_path}/disk")
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], check=True)
        old = folder / "20200101-000000.ts"
        old.write_bytes(bytes(500 << 10))
        codec, extradata, packets = pickle.loads(Path("{tmp_path}/source").read_bytes())
        told = []
        pattern = Pattern(str(folder / "%Y%m%d-%H%M%S.ts"))
        with cuframes.PacketPublisher("full", codec, extradata=extradata, slots=64, data_size=1 << 20) as publisher:
            with cuframes.PacketReader("full", "next") as reader:
                retention = segments.Retention(pattern, keep_s=3600)
                recording = segments.SegmentedRecording(pattern, reader, 60, retention=retention, told=told.append)
                with recording:
                    end = time.monotonic() + 40
                    while len(told) < 2 and time.monotonic() < end:
                        for data, pts, dts, key in packets:
                            publisher.publish_packet(data, pts_ns=pts, dts_ns=dts, keyframe=key)
                            recording.write(reader.next(0))
                        if told and old.exists():
                            os.utime(old, (0, 0))
        print(json.dumps([told, old.exists(), retention.removed]))
    """
    done = in_namespace(script, 8 << 20)
    assert done.returncode == 0, done.stderr
    told, exists, removed = json.loads(done.stdout)
    assert "No space left on device" in told[0]
    assert "recording goes on" in told[1]
    assert (exists, removed) == (False, 1)


def test_wherever_the_disk_ends_the_file_can_be_played(encoded, tmp_path):
    """Also where there is room for all packets, and not for what FFmpeg writes at the end."""
    source = Source(encoded("h264", ".mp4"))
    (tmp_path / "disk").mkdir()
    (tmp_path / "source").write_bytes(pickle.dumps((source.codec, source.extradata, source.packets)))
    script = f"""
        import json, pickle, subprocess
        from pathlib import Path
        import av, cuframes
        from cuframes.media.files import WriteFailed
        from cuframes.media.recording import Recording
        codec, extradata, packets = pickle.loads(Path("{tmp_path}/source").read_bytes())
        seen = []
        for suffix in (".mp4", ".mkv", ".ts"):
            for pages in range(1, 64):
                size = 4096 * pages
                mount = ["mount", "-t", "tmpfs", "-o", "size=" + str(size), "tmpfs", "{tmp_path}/disk"]
                subprocess.run(mount, check=True)
                path = Path("{tmp_path}/disk/x" + suffix)
                ring = dict(extradata=extradata, slots=256, data_size=1 << 20)
                with cuframes.PacketPublisher("full", codec, **ring) as publisher:
                    for data, pts, dts, key in packets:
                        publisher.publish_packet(data, pts_ns=pts, dts_ns=dts, keyframe=key)
                    with cuframes.PacketReader("full", "oldest") as reader:
                        recording = Recording(path, reader)
                        failed = "never"
                        try:
                            for _ in packets:
                                recording.write(reader.next(0))
                            failed = "at its end"
                            recording.close()
                            failed = "never"
                        except WriteFailed as problem:
                            assert problem.full
                            failed = "before" if failed == "never" else failed
                        recording.close()
                found = decoded = 0
                if path.exists():
                    with av.open(str(path)) as container:
                        found = sum(1 for packet in container.demux(video=0) if packet.size)
                    with av.open(str(path)) as container:
                        decoded = sum(1 for _ in container.decode(video=0))
                seen.append([suffix, size, failed, recording.packets, recording.unwritten, found, decoded])
                subprocess.run(["umount", "{tmp_path}/disk"], check=True)
                if failed == "never":
                    break
        print(json.dumps(seen))
    """
    done = in_namespace(script, 8 << 20)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    for suffix, size, failed, packets, unwritten, found, decoded in seen:
        assert packets == found == decoded, (suffix, size, failed)
        assert unwritten == 0 if failed == "never" else unwritten > 0
    assert {(suffix, failed) for suffix, _, failed, *_ in seen} >= {
        (suffix, failed) for suffix in (".mp4", ".mkv") for failed in ("before", "at its end", "never")
    }
