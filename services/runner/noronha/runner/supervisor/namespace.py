"""A task's own view of the file system, in which its folders lie at ``/app /data /model /tmp /logs``.

Nothing on the host is touched: a small file system in memory becomes the root, everything of the old root is bound into
it, and the task's folders and the user's mounts go on top. Needs no privilege where the host allows user namespaces.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_libc = ctypes.CDLL(None, use_errno=True)

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_SLAVE = 4096, 16384, 1 << 18, 1 << 19
_MS_NOATIME, _MS_NODIRATIME, _MS_RELATIME = 1024, 2048, 1 << 21
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_MOST_ENTRIES = 5000
"""Entries of a host folder that are bound one by one so that a mount point can be made beside them."""

OLD = "/.host"
"""Where the old root is while the new one is put together."""


class Bind:
    """One folder or file at another place; ``own``: it belongs to the task, so mount points may be made in it."""

    def __init__(self, source: str, target: str, read_only: bool = False, own: bool = False) -> None:
        self.source = source
        self.target = target
        self.read_only = read_only
        self.own = own


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def become_subreaper() -> None:
    """Makes this process the parent of all of its descendants whose own parent ends."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def end_with_parent(signal_number: int) -> None:
    """Has this process sent a signal when its parent ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0), "prctl")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            kind.encode() if kind else None,
            ctypes.c_ulong(flags),
            data.encode() if data else None,
        ),
        f"mount {target}",
    )


def _put(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def _unshare() -> None:
    if _libc.unshare(_CLONE_NEWNS) == 0:
        return
    user, group = os.geteuid(), os.getegid()
    _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS), "unshare")
    _put("/proc/self/setgroups", "deny")
    _put("/proc/self/uid_map", f"{user} {user} 1")
    _put("/proc/self/gid_map", f"{group} {group} 1")


def enter(base: str, binds: Iterable[Bind], keep: Iterable[str]) -> None:
    """Moves this process, which must have one thread, into a view of its own.

    ``base`` is an empty folder to begin on. ``keep`` names paths that must stay visible although a bind lies over them.
    Raises OSError where the host does not allow it; the process is of no use then.
    """
    _unshare()
    _mount("none", "/", None, _MS_REC | _MS_SLAVE)
    _mount("tmpfs", base, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=16m")
    old = base + OLD
    os.mkdir(old)
    os.chdir(base)
    machine = os.uname().machine
    if machine not in _SYS_PIVOT_ROOT:
        raise OSError(f"pivot_root has no known number on {machine}")
    _check(_libc.syscall(_SYS_PIVOT_ROOT[machine], b".", os.fsencode(OLD.lstrip("/"))), "pivot_root")
    os.chdir("/")
    _View(list(binds), sorted(set(keep))).build()


class _View:
    def __init__(self, binds: list[Bind], keep: list[str]) -> None:
        self._binds = binds
        self._keep = keep
        self._made = {"/"}
        """Folders in memory, in which mount points can be made."""

    def build(self) -> None:
        self._fill("/", leave=OLD)
        for bind in sorted(self._binds, key=lambda each: each.target.count("/")):
            target = self._bind(bind)
            if bind.own:
                self._made.add(target)
            for path in self._keep:
                inside = path.startswith(target.rstrip("/") + "/")
                # A path below one that is kept already came with it.
                if inside and not any(path.startswith(f"{other}/") for other in self._keep):
                    self._bind(Bind(path, path))
        _mount("none", OLD, None, _MS_REC | _MS_PRIVATE)
        _check(_libc.umount2(os.fsencode(OLD), _MNT_DETACH), "umount")
        os.rmdir(OLD)

    def _fill(self, folder: str, leave: str = "") -> None:
        """Puts everything that the host has in a folder into an empty one of ours."""
        names = os.listdir(OLD + folder)
        if len(names) > _MOST_ENTRIES:
            raise OSError(f"{folder} holds too many entries to make a mount point in it")
        for name in names:
            place = os.path.join(folder, name)
            if place == leave:
                continue
            source = OLD + place
            if os.path.islink(source):
                os.symlink(os.readlink(source), place)
            else:
                _point(place, os.path.isdir(source))
                _mount(source, place, None, _MS_BIND | _MS_REC)

    def _bind(self, bind: Bind) -> str:
        target = os.path.realpath(bind.target)
        source = OLD + bind.source
        if not os.path.lexists(target):
            self._provide(target, os.path.isdir(source))
        _mount(source, target, None, _MS_BIND | _MS_REC)
        if bind.read_only:
            _make_read_only(target)
        return target

    def _provide(self, target: str, folder: bool) -> None:
        """Makes a mount point without touching the host."""
        parent = os.path.dirname(target)
        while not os.path.lexists(parent):
            parent = os.path.dirname(parent)
        if not any(parent == made or parent.startswith(made.rstrip("/") + "/") for made in self._made - {"/"}) and (
            parent != "/"
        ):
            if any(parent == bind.target or parent.startswith(bind.target + "/") for bind in self._binds):
                raise OSError(f"{target} does not exist inside what is mounted at {parent}")
            _mount("tmpfs", parent, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=16m")
            self._fill(parent)
            self._made.add(parent)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        _point(target, folder)


def _point(path: str, folder: bool) -> None:
    if folder:
        os.mkdir(path)
    else:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))


def _make_read_only(target: str) -> None:
    """Forbids writing below a mount, and below whatever is mounted inside it."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        places = [line.split(" ")[4].encode().decode("unicode_escape") for line in file]
    for place in places:
        if place == target or place.startswith(target.rstrip("/") + "/"):
            flags = os.statvfs(place).f_flag
            kept = flags & (_MS_NOSUID | _MS_NODEV | _MS_NOEXEC | _MS_NOATIME | _MS_NODIRATIME)
            # statvfs and mount name this one flag by different bits.
            kept |= _MS_RELATIME if flags & 4096 else 0
            _mount("none", place, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | kept)
