# SPDX-License-Identifier: Apache-2.0
"""The one tree of errors.

    InsulaError                        internal
    ├── BadRequest                     bad_request          the caller's words are wrong
    │   ├── InvalidSpec                invalid_spec
    │   ├── InvalidPolicy              invalid_policy
    │   ├── InvalidImage               invalid_image        a tar, manifest or layer that cannot be trusted
    │   └── PathEscapes                path_escapes         a path that leaves the container's root
    ├── Denied                         denied               known, but not allowed
    │   ├── NotPermitted               not_permitted        asked for more than the policy grants
    │   └── Unauthenticated            unauthenticated      not even known: a wrong token, a lost account
    ├── NotFound                       not_found            … container_not_found, image_not_found, …
    ├── Conflict                       conflict             … name_taken, port_in_use, wrong_state, in_use, …
    ├── Exhausted                      exhausted            … address_pool_exhausted, disk_full, quota_exceeded, …
    ├── Unsupported                    unsupported          this kernel or machine lacks a feature
    ├── StartFailed                    start_failed         … command_not_found, command_not_executable
    ├── CheckpointFailed               checkpoint_failed    … checkpoint_busy
    ├── RestoreFailed                  restore_failed       … checkpoint_altered
    ├── MigrationFailed                migration_failed     … target_unreachable, target_full, memory_lost, …
    ├── Cancelled                      cancelled            by its caller
    ├── Interrupted                    interrupted          insulad ended meanwhile
    ├── SpawnerGone                    spawner_gone         the parent of the containers does not answer
    ├── ProtocolError                  protocol_error       a peer sent what cannot be understood
    └── DaemonUnreachable              daemon_unreachable   the client found no insulad

`code` is stable and for machines; the message is for people: verb, object in backticks, reason, lower case, no full
stop; `hint` is the cure, if there is one; `fields` go to the log.  HTTP statuses stand in `api/errors.py`, exit codes
in `cli/`.  Standard library only: the CLI imports this on every call.
"""


class InsulaError(Exception):
    """Any failure that insula explains.  Raise the narrowest class below."""

    code = "internal"

    def __init__(self, message: str, *, hint: str = "", **fields: str | int) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fields = fields

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class BadRequest(InsulaError):
    code = "bad_request"


class InvalidSpec(BadRequest):
    code = "invalid_spec"


class InvalidPolicy(BadRequest):
    code = "invalid_policy"


class InvalidRule(BadRequest):
    code = "invalid_rule"


class InvalidExport(BadRequest):
    code = "invalid_export"


class InvalidImage(BadRequest):
    code = "invalid_image"


class ImageTooLarge(InvalidImage):
    """More than it may unpack to."""

    code = "image_too_large"


class PathEscapes(BadRequest):
    code = "path_escapes"


class Denied(InsulaError):
    code = "denied"


class NotPermitted(Denied):
    """The policy does not grant what was asked for."""

    code = "not_permitted"


class Unauthenticated(Denied):
    """Nobody can tell who calls."""

    code = "unauthenticated"


class NotFound(InsulaError):
    code = "not_found"


class ContainerNotFound(NotFound):
    code = "container_not_found"


class ImageNotFound(NotFound):
    code = "image_not_found"


class NetworkNotFound(NotFound):
    code = "network_not_found"


class VolumeNotFound(NotFound):
    code = "volume_not_found"


class ProfileNotFound(NotFound):
    code = "profile_not_found"


class HostNotFound(NotFound):
    code = "host_not_found"


class TenantNotFound(NotFound):
    code = "tenant_not_found"


class CheckpointNotFound(NotFound):
    code = "checkpoint_not_found"


class OperationNotFound(NotFound):
    code = "operation_not_found"


class UserNotFound(NotFound):
    code = "user_not_found"


class TokenNotFound(NotFound):
    code = "token_not_found"


class PathNotFound(NotFound):
    code = "path_not_found"


class Conflict(InsulaError):
    code = "conflict"


class NameTaken(Conflict):
    code = "name_taken"


class PortInUse(Conflict):
    code = "port_in_use"


class WrongState(Conflict):
    code = "wrong_state"


class InUse(Conflict):
    code = "in_use"


class SubnetOverlaps(Conflict):
    code = "subnet_overlaps"


class Exhausted(InsulaError):
    code = "exhausted"


class AddressPoolExhausted(Exhausted):
    code = "address_pool_exhausted"


class UidRangeExhausted(Exhausted):
    code = "uid_range_exhausted"


class UidRangeTaken(Conflict):
    """Uids of a tenant stand in somebody else's name in /etc/subuid or /etc/subgid."""

    code = "uid_range_taken"


class DiskFull(Exhausted):
    code = "disk_full"


class LimitRefused(Exhausted):
    code = "limit_refused"


class QuotaExceeded(Exhausted):
    """A tenant would use more than it may."""

    code = "quota_exceeded"


class TookTooLong(Exhausted):
    """Work that did not end within its time."""

    code = "took_too_long"


class TooManyRequests(Exhausted):
    """A user asks faster than it may.  after_s: when to try again."""

    code = "too_many_requests"

    def __init__(self, message: str, *, hint: str = "", after_s: int = 1) -> None:
        super().__init__(message, hint=hint, after_s=after_s)
        self.after_s = after_s


class Unsupported(InsulaError):
    code = "unsupported"


class AuditUnavailable(InsulaError):
    code = "audit_unavailable"


class StartFailed(InsulaError):
    code = "start_failed"


class CommandNotFound(StartFailed):
    code = "command_not_found"


class CommandNotExecutable(StartFailed):
    code = "command_not_executable"


class CheckpointFailed(InsulaError):
    code = "checkpoint_failed"


class CheckpointBusy(CheckpointFailed):
    """What is in the way passes by itself: a connection that is not accepted yet."""

    code = "checkpoint_busy"


class RestoreFailed(InsulaError):
    code = "restore_failed"


class CheckpointAltered(RestoreFailed):
    """Not one bit of a checkpoint may have changed since it was made."""

    code = "checkpoint_altered"


class MigrationFailed(InsulaError):
    code = "migration_failed"


class TargetUnreachable(MigrationFailed):
    code = "target_unreachable"


class TargetFull(MigrationFailed):
    code = "target_full"


class IncompatibleCpu(MigrationFailed):
    code = "incompatible_cpu"


class TargetRefused(MigrationFailed):
    code = "target_refused"


class PauseTooLong(MigrationFailed):
    code = "pause_too_long"


class MemoryLost(MigrationFailed):
    """Of a container that runs here already, pages that were on the other host are nowhere any more."""

    code = "memory_lost"


class Cancelled(InsulaError):
    code = "cancelled"


class ProtocolError(InsulaError):
    code = "protocol_error"


class SpawnerGone(InsulaError):
    """The parent of the containers does not answer any more."""

    code = "spawner_gone"


class Interrupted(InsulaError):
    """An operation that insulad's end cut short."""

    code = "interrupted"


class DaemonUnreachable(InsulaError):
    code = "daemon_unreachable"


def _all_below(kind: type[InsulaError]) -> list[type[InsulaError]]:
    found = [kind]
    for child in kind.__subclasses__():
        found += _all_below(child)
    return found


def codes_below(*kinds: type[InsulaError]) -> frozenset[str]:
    """Return the codes of these errors and of all below them in the tree."""
    return frozenset(each.code for kind in kinds for each in _all_below(kind))


def from_code(code: str, message: str, *, hint: str = "") -> InsulaError:
    """Build the error that a daemon named by its code.  An unknown code of a newer daemon gives an InsulaError."""
    for kind in _all_below(InsulaError):
        if kind.code == code:
            return kind(message, hint=hint)
    error = InsulaError(message, hint=hint)
    error.code = code
    return error
