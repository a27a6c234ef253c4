# SPDX-License-Identifier: Apache-2.0
"""Users and tokens in the store.  What they mean: `tenant/identity.py`; the file itself: `database.py`."""

import sqlite3

import msgspec

from insula.model.errors import NameTaken, TokenNotFound, UserNotFound
from insula.model.users import Origin, TokenRecord, UserRecord
from insula.runtime.database import Database, encode


class People(Database):
    """Who may give commands.  Changes are on disk when a method returns: a right that was taken away stays away."""

    def list_users(self) -> list[UserRecord]:
        """Return all users and groups by name."""
        return self.records(UserRecord, "SELECT record FROM users ORDER BY name")

    def list_groups(self) -> list[UserRecord]:
        """Return the Unix groups by name."""
        return self.records(
            UserRecord, "SELECT record FROM users WHERE origin = ? ORDER BY name", Origin.GROUP.value
        )

    def find_user(self, name: str) -> UserRecord | None:
        """Return the user of that name."""
        return self.record(UserRecord, "SELECT record FROM users WHERE name = ?", name)

    def get_user(self, name: str) -> UserRecord:
        """Return the user of that name.

        Raises: UserNotFound.
        """
        found = self.find_user(name)
        if found is None:
            raise UserNotFound(f"cannot find user `{name}`", hint="insula user ls lists the known ones")
        return found

    def find_user_of_uid(self, uid: int) -> UserRecord | None:
        """Return the Unix user who has that uid."""
        return self.record(
            UserRecord,
            "SELECT record FROM users WHERE origin = ? AND number = ?",
            Origin.UNIX.value,
            uid,
        )

    def find_user_by_fingerprint(self, fingerprint: str) -> UserRecord | None:
        """Return the remote user whose pinned certificate that is."""
        return self.record(UserRecord, "SELECT record FROM users WHERE fingerprint = ?", fingerprint)

    def find_user_of_tenant(self, tenant: str, *, other_than: str) -> UserRecord | None:
        """Return a user of another name who works with that tenant."""
        return self.record(
            UserRecord, "SELECT record FROM users WHERE tenant = ? AND name != ? LIMIT 1", tenant, other_than
        )

    def save_user(self, record: UserRecord) -> None:
        """Remember a user, new or changed.

        Raises: NameTaken if another one has its uid, gid or certificate.
        """
        with self.transaction(durable=True):
            try:
                self.write(
                    "INSERT INTO users VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET"
                    " origin = excluded.origin, number = excluded.number, fingerprint = excluded.fingerprint,"
                    " tenant = excluded.tenant, record = excluded.record",
                    *(record.name, record.origin.value, record.number, record.fingerprint or None),
                    *(record.tenant, encode(record)),
                )
            except sqlite3.IntegrityError as error:
                raise NameTaken(f"cannot add user `{record.name}`: another one has its number") from error

    def unbind(self, origin: Origin, *, number: int, but: str) -> None:
        """Take a uid or gid away from who had it, unless it is that name's."""
        with self.transaction(durable=True):
            for record in self.list_users():
                if record.origin is origin and record.number == number and record.name != but:
                    self.save_user(msgspec.structs.replace(record, number=None))

    def delete_user(self, name: str) -> None:
        """Forget a user and its tokens.

        Raises: UserNotFound.
        """
        with self.transaction(durable=True):
            if not self.write("DELETE FROM users WHERE name = ?", name):
                raise UserNotFound(f"cannot remove user `{name}`: there is none")
            self.delete_tokens_of(name)

    def list_tokens_of(self, owner: str | None) -> list[TokenRecord]:
        """Return the tokens of a user, None: of all, oldest first."""
        return self.records(
            TokenRecord,
            "SELECT record FROM api_tokens WHERE (?1 IS NULL OR owner = ?1) ORDER BY created_at, id",
            owner,
        )

    def find_token(self, token_id: str) -> tuple[TokenRecord, bytes] | None:
        """Return a token and the digest of its secret."""
        rows = self.read("SELECT record, digest FROM api_tokens WHERE id = ?", token_id)
        if not rows or not isinstance(rows[0][0], bytes) or not isinstance(rows[0][1], bytes):
            return None
        return msgspec.json.decode(rows[0][0], type=TokenRecord), rows[0][1]

    def save_api_token(self, record: TokenRecord, *, digest: bytes, now: float) -> None:
        """Remember a token; expired ones go."""
        with self.transaction(durable=True):
            self.write("DELETE FROM api_tokens WHERE expires_at < ?", now)
            self.write(
                "INSERT INTO api_tokens VALUES (?, ?, ?, ?, ?, ?)",
                *(record.id, record.owner, digest, record.created_at, record.expires_at, encode(record)),
            )

    def delete_api_token(self, token_id: str) -> None:
        """Forget a token: it is refused from now on.

        Raises: TokenNotFound.
        """
        with self.transaction(durable=True):
            if not self.write("DELETE FROM api_tokens WHERE id = ?", token_id):
                raise TokenNotFound(f"cannot find token `{token_id}`", hint="insula token ls lists yours")

    def delete_tokens_of(self, owner: str) -> None:
        """Forget all tokens of a user."""
        with self.transaction(durable=True):
            self.write("DELETE FROM api_tokens WHERE owner = ?", owner)
