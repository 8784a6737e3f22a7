# SPDX-License-Identifier: Apache-2.0
"""A disk that loses what was not synced: what record.c has told of, and what a power cut leaves of it."""
import os
import subprocess
from pathlib import Path

SHIM = Path(__file__).resolve().parents[1] / "data/record.c"


class File:
    """A file, directory or link, whatever its names are. Its data is known at each moment."""

    def __init__(self, kind):
        self.kind, self.data, self.synced = kind, bytearray(), b""
        self.versions = []  # since the last sync


class Recorder:
    """What a vmfs does to its state directory, told in a file."""

    def __init__(self, base, root):
        self.root, self.path, self.library = root, base / "record", base / "record.so"
        self.path.touch()
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", self.library, SHIM, "-ldl"],
                       check=True)

    @property
    def env(self):
        return {"LD_PRELOAD": str(self.library), "VMFS_RECORD": str(self.path),
                "VMFS_RECORD_ROOT": str(self.root),
                "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"}

    def now(self):
        """The moment: bytes of what has been told."""
        return self.path.stat().st_size

    def records(self):
        """(moment after it, words, data) of each."""
        told, at = self.path.read_bytes(), 0
        while at < len(told):
            end = told.index(b"\n", at)
            *words, size = told[at:end].decode().split("\t")
            at = end + 1 + int(size)
            yield at, words, told[end + 1:at]


class Disk:
    """
    The disk up to a moment. A sync of a file keeps its data, its name and the directories on the
    way to it; one of a directory keeps the names in it, as ext4, XFS and btrfs have it. All other
    changes of names reach the disk in their order, up to a moment of chance; the data of each file
    that was not synced reaches it as far as chance will.
    """

    def __init__(self, recorder, moment):
        self.root, self.files, self.names, self.changes = recorder.root, {}, {}, []
        for at, words, data in recorder.records():
            if at > moment:
                break
            getattr(self, "_" + words[0])(*words[1:], data=data)

    def _change(self, *change):
        self.changes.append([*change, False])

    def _new(self, kind, inode, path, data):
        self.files[inode] = file = File(kind)
        self.names[path] = file
        if kind == "link":
            file.data[:] = file.synced = data
        self._change("add", path, file)

    def _create(self, inode, path, data):
        self._new("file", inode, path, data)

    def _mkdir(self, inode, path, data):
        self._new("dir", inode, path, data)

    def _symlink(self, inode, path, data):
        self._new("link", inode, path, data)

    def _write(self, inode, offset, data):
        file, offset = self.files[inode], int(offset)
        file.data.extend(bytes(max(0, offset - len(file.data))))
        file.data[offset:offset + len(data)] = data
        file.versions.append(bytes(file.data))

    def _resize(self, inode, size, data):
        file, size = self.files[inode], int(size)
        del file.data[size:]
        file.data.extend(bytes(size - len(file.data)))
        file.versions.append(bytes(file.data))

    def _drop(self, path, data):
        del self.names[path]
        self._change("drop", path, None)

    _unlink = _rmdir = _drop

    def _rename(self, a, b, data):
        for path in [p for p in self.names if p == a or p.startswith(a + "/")]:
            self.names[b + path[len(a):]] = self.names.pop(path)
        self._change("rename", a, b)

    def _exchange(self, a, b, data):
        self.names[a], self.names[b] = self.names[b], self.names[a]
        self._change("exchange", a, b)

    def _sync(self, inode, data):
        file = self.files.get(inode)
        if file and file.kind == "file":
            file.synced, file.versions = bytes(file.data), []
        way = str(self.root) if not file else next(
            (p for p, f in self.names.items() if f is file), None)
        if way is None:
            return
        inside = not file or file.kind == "dir"
        # Backwards: the names that it had, and those of the directories on the way.
        ways = [way]
        for change in reversed(self.changes):
            what, a, b, _ = change
            names = [a, b] if what in ("rename", "exchange") else [a]
            touched = any(w == n or w.startswith(n + "/") for w in ways for n in names)
            change[3] |= touched and what != "drop" or inside and any(
                os.path.dirname(n) in ways for n in names)
            if what in ("rename", "exchange") and touched:
                ways += [a + w[len(b):] for w in ways if w == b or w.startswith(b + "/")]

    def lose(self, chance, target):
        """Make in `target` what is there after the power came back."""
        kept = chance.randrange(len(self.changes) + 1)
        names = {}
        for n, (what, a, b, forced) in enumerate(self.changes):
            if n >= kept and not forced:
                continue
            if what == "add":
                names[a] = b
            elif what == "drop":
                names.pop(a, None)
            elif what == "rename":
                for path in [p for p in names if p == a or p.startswith(a + "/")]:
                    names[b + path[len(a):]] = names.pop(path)
            elif a in names and b in names:
                names[a], names[b] = names[b], names[a]
        root, left = str(self.root), {}
        for path, file in sorted(names.items()):
            place = target / path[len(root) + 1:]
            if not place.parent.is_dir():
                continue  # its directory was not kept
            if file.kind == "dir":
                place.mkdir(mode=0o711)
            elif file.kind == "link":
                place.symlink_to(bytes(file.data).decode())
            else:
                place.write_bytes(left.setdefault(id(file), self._data(chance, file)))
                place.chmod(0o600)

    @staticmethod
    def _data(chance, file):
        data = chance.choice([file.synced, *file.versions])
        if file.versions and chance.random() < 0.5:
            # It had its size before it had its data.
            at = chance.randrange(len(data) + 1)
            data = data[:at] + bytes(len(data) - at)
        return data
