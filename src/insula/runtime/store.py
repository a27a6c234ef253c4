# SPDX-License-Identifier: Apache-2.0
"""What the daemon remembers of what tenants own: containers, checkpoints, images, networks, leases, volumes.

Records in, records out; the whole record is JSON in one column, what must be unique or fast to find stands beside it.
`get_…` and `find_container` raise the narrow not-found error, `find_…` of other kinds may return None.  A tenant of
None means every tenant.  The file itself, its transactions and versions: `database.py`; hosts,
operations and the order of tenants: `ledger.py`.
"""

import sqlite3
from collections.abc import Callable

import msgspec

from insula.model.errors import (
    CheckpointNotFound,
    Conflict,
    ContainerNotFound,
    ImageNotFound,
    InUse,
    NameTaken,
    NetworkNotFound,
    VolumeNotFound,
)
from insula.model.record import (
    CheckpointRecord,
    ContainerRecord,
    ImageRecord,
    Lease,
    NetworkRecord,
    VolumeRecord,
)
from insula.runtime.database import encode
from insula.runtime.ledger import Ledger

_HEXADECIMAL = frozenset("0123456789abcdef")

Listener = Callable[[str, ContainerRecord | None], None]
"""Called after a change of a container is committed, with its id and its record, None when it is gone; in the changing thread."""


def no_container(ref: str) -> ContainerNotFound:
    """Return the one error for containers that there are not, and for those that are none of the caller's business."""
    return ContainerNotFound(f"cannot find container `{ref}`", hint="insula ps -a lists them")


def volume_name_taken(name: str) -> NameTaken:
    """Return what is said where there is a volume of that name."""
    return NameTaken(f"cannot name a volume `{name}`: the name is taken", hint="choose another name")


LEFT = "left:"
"""Journal, with the container's id: its generation when it was given away."""


class Store(Ledger):
    """Everything that outlives the daemon, except files' contents."""

    _listeners: tuple[Listener, ...] = ()

    # containers

    def subscribe(self, listener: Listener) -> None:
        """Call the listener after each change of a container."""
        self._listeners = (*self._listeners, listener)

    def _tell(self, container_id: str, record: ContainerRecord | None) -> None:
        def tell() -> None:
            for listener in self._listeners:
                listener(container_id, record)

        self.after_commit(tell)

    def add_container(self, record: ContainerRecord) -> None:
        """Remember a new container.

        Raises: NameTaken if the tenant has one of that name.
        """
        try:
            self.write(
                "INSERT INTO containers VALUES (?, ?, ?, ?, ?, ?, ?)",
                *(record.id, record.tenant, record.name, record.created_at),
                *(record.owner, record.generation, encode(record)),
            )
        except sqlite3.IntegrityError as error:
            raise self._container_name_taken(record) from error
        self._tell(record.id, record)

    def _container_name_taken(self, record: ContainerRecord) -> NameTaken:
        return NameTaken(
            f"cannot name a container `{record.name}`: the name is taken",
            hint=f"choose another, or remove the old one: insula rm {record.name}",
            container=record.id,
        )

    def get_container(self, container_id: str) -> ContainerRecord:
        """Return the container of that full id.

        Raises: ContainerNotFound.
        """
        record = self.record(ContainerRecord, "SELECT record FROM containers WHERE id = ?", container_id)
        if record is None:
            raise ContainerNotFound(f"cannot find container `{container_id}`")
        return record

    def find_container(self, tenant: str | None, ref: str) -> ContainerRecord:
        """Return the tenant's container of that name, full id, or unique prefix of the id, tried in this order.

        Raises: ContainerNotFound; Conflict if several are meant.
        """
        scope, values = ("", ()) if tenant is None else ("AND tenant = ?", (tenant,))
        tries: list[tuple[str, tuple[str, ...]]] = [("name = ?", (ref,))]
        if _is_id_prefix(ref):
            # Ids are lower-case hexadecimal, so `g` follows everything that begins with the prefix.
            tries.append(("id >= ? AND id < ?", (ref, ref + "g")))
        for condition, words in tries:
            found = self.records(
                ContainerRecord,
                f"SELECT record FROM containers WHERE {condition} {scope} LIMIT 2",
                *words,
                *values,
            )
            if len(found) == 1:
                return found[0]
            if found:
                raise Conflict(f"cannot choose container `{ref}`: several match", hint="give more of the id")
        raise no_container(ref)

    def list_containers(self, tenant: str | None = None) -> list[ContainerRecord]:
        """Return the containers, oldest first."""
        return self.records(
            ContainerRecord,
            "SELECT record FROM containers WHERE ?1 IS NULL OR tenant = ?1 ORDER BY created_at, id",
            tenant,
        )

    def count_containers(self, tenant: str) -> int:
        """Count a tenant's containers, running or not."""
        (count,) = self.read("SELECT count(*) FROM containers WHERE tenant = ?", tenant)[0]
        return int(count or 0)

    def update_container(self, record: ContainerRecord, *, durable: bool = False) -> None:
        """Replace the record of a container; its name may change with it.

        Raises: ContainerNotFound, NameTaken.
        """
        self.change_container(record.id, lambda _: record, durable=durable)

    def change_container(
        self,
        container_id: str,
        change: Callable[[ContainerRecord], ContainerRecord],
        *,
        durable: bool = False,
    ) -> ContainerRecord:
        """Read, change and write back as one step.  What `change` raises leaves everything as it was.

        Raises: ContainerNotFound, NameTaken.
        """
        with self.transaction(durable=durable):
            old = self.get_container(container_id)
            new = change(old)
            if new == old:
                return old
            try:
                self.write(
                    "UPDATE containers SET tenant=?, name=?, owner=?, generation=?, record=? WHERE id=?",
                    *(new.tenant, new.name, new.owner, new.generation, encode(new), container_id),
                )
            except sqlite3.IntegrityError as error:
                raise self._container_name_taken(new) from error
        self._tell(container_id, new)
        return new

    def delete_container(self, container_id: str) -> None:
        """Forget a container, its checkpoints and its leases.  Nothing happens if it is unknown."""
        with self.transaction():
            self.write("DELETE FROM checkpoints WHERE container = ?", container_id)
            self.write("DELETE FROM leases WHERE container = ?", container_id)
            count = self.write("DELETE FROM containers WHERE id = ?", container_id)
        if count:
            self._tell(container_id, None)

    def commit_owner(self, container_id: str, expected_generation: int, *, new_owner: str) -> bool:
        """Change the owner if nobody else did since: the point of no return of a migration.

        On disk when it returns.  Returns False, and changes nothing, if the generation is another one.
        Raises: ContainerNotFound.
        """
        with self.transaction(durable=True):
            record = self.get_container(container_id)
            if record.generation != expected_generation:
                return False
            new = msgspec.structs.replace(record, owner=new_owner, generation=expected_generation + 1)
            self.write(
                "UPDATE containers SET owner=?, generation=?, record=? WHERE id=?",
                *(new.owner, new.generation, encode(new), container_id),
            )
            self.write_journal(LEFT + container_id, b"%d" % new.generation)
        self._tell(container_id, new)
        return True

    def left_generation(self, container_id: str) -> int:
        """Return the generation that a container had when it left this host; 0: it never did.

        It stays for ever: what is said of an older one is a repetition.
        """
        return int(self.read_journal(LEFT + container_id) or 0)

    # images

    def list_images(self, tenant: str | None = None) -> list[ImageRecord]:
        """Return the images that the tenant may use (its own and the system's), oldest first."""
        images = self.records(ImageRecord, "SELECT record FROM images ORDER BY created_at, id")
        return [image for image in images if tenant is None or image.tenant in ("", tenant)]

    def image_bytes(self, tenant: str) -> int:
        """Add up the layers of a tenant's own images, each layer once."""
        layers = {
            layer.digest: layer.size_bytes
            for image in self.list_images()
            if image.tenant == tenant
            for layer in image.layers
        }
        return sum(layers.values())

    def get_image(self, image_id: str) -> ImageRecord:
        """Return the image of that full id.

        Raises: ImageNotFound.
        """
        record = self.record(ImageRecord, "SELECT record FROM images WHERE id = ?", image_id)
        if record is None:
            raise ImageNotFound(f"cannot find image `{image_id}`", hint="insula image ls lists them")
        return record

    def find_image_by_name(self, tenant: str, name: str) -> ImageRecord | None:
        """Return the tenant's image of that full name, else the system's."""
        for owner in (tenant, ""):
            rows = self.read("SELECT image FROM image_names WHERE tenant = ? AND name = ?", owner, name)
            if rows:
                return self.get_image(str(rows[0][0]))
        return None

    def save_image(self, record: ImageRecord) -> None:
        """Remember an image.  Its names move to it from other images of the same tenant."""
        with self.transaction():
            for other in self.list_images():
                lost = set(other.names) & set(record.names)
                if lost and other.id != record.id and other.tenant == record.tenant:
                    kept = tuple(name for name in other.names if name not in lost)
                    self._write_image(msgspec.structs.replace(other, names=kept))
            self._write_image(record)

    def _write_image(self, record: ImageRecord) -> None:
        self.write(
            "INSERT INTO images VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET record = excluded.record",
            *(record.id, record.created_at, encode(record)),
        )
        self.write("DELETE FROM image_names WHERE image = ?", record.id)
        for name in record.names:
            self.write("INSERT OR REPLACE INTO image_names VALUES (?, ?, ?)", record.tenant, name, record.id)

    def delete_image(self, image_id: str) -> None:
        """Forget an image and its names.

        Raises: ImageNotFound.
        """
        if not self.write("DELETE FROM images WHERE id = ?", image_id):
            raise ImageNotFound(f"cannot remove image `{image_id}`: there is none", hint="insula image ls")

    # networks and leases

    def list_networks(self, tenant: str | None = None) -> list[NetworkRecord]:
        """Return the networks, oldest first."""
        return self.records(
            NetworkRecord,
            "SELECT record FROM networks WHERE ?1 IS NULL OR tenant = ?1 ORDER BY created_at, id",
            tenant,
        )

    def get_network(self, network_id: str) -> NetworkRecord:
        """Return the network of that full id.

        Raises: NetworkNotFound.
        """
        record = self.record(NetworkRecord, "SELECT record FROM networks WHERE id = ?", network_id)
        if record is None:
            raise NetworkNotFound(f"cannot find network `{network_id}`", hint="insula network ls lists them")
        return record

    def find_network(self, tenant: str, name: str) -> NetworkRecord | None:
        """Return the tenant's network of that name."""
        return self.record(
            NetworkRecord, "SELECT record FROM networks WHERE tenant = ? AND name = ?", tenant, name
        )

    def save_network(self, record: NetworkRecord) -> None:
        """Remember a network, new or changed.

        Raises: NameTaken.
        """
        try:
            self.write(
                "INSERT INTO networks VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
                " tenant = excluded.tenant, name = excluded.name, record = excluded.record",
                *(record.id, record.tenant, record.name, record.created_at, encode(record)),
            )
        except sqlite3.IntegrityError as error:
            raise NameTaken(f"cannot name a network `{record.name}`: the name is taken") from error

    def delete_network(self, network_id: str) -> None:
        """Forget a network.

        Raises: InUse while leases are left; NetworkNotFound.
        """
        with self.transaction():
            if self.read("SELECT 1 FROM leases WHERE network = ? LIMIT 1", network_id):
                raise InUse(f"cannot remove network `{network_id}`: containers hold addresses of it")
            if not self.write("DELETE FROM networks WHERE id = ?", network_id):
                raise NetworkNotFound(f"cannot remove network `{network_id}`: there is none")

    def list_leases(self, network_id: str | None = None) -> list[Lease]:
        """Return the leases of a network, or all."""
        return self.records(
            Lease,
            "SELECT record FROM leases WHERE ?1 IS NULL OR network = ?1 ORDER BY network, address",
            network_id,
        )

    def leases_of(self, container_id: str) -> list[Lease]:
        """Return the leases that a container holds."""
        return self.records(Lease, "SELECT record FROM leases WHERE container = ?", container_id)

    def save_lease(self, lease: Lease) -> None:
        """Remember a lease.  Saving it again for the same container replaces it.

        Raises: Conflict if another container has the address.
        """
        count = self.write(
            "INSERT INTO leases VALUES (?, ?, ?, ?) ON CONFLICT (network, address) DO UPDATE SET"
            " record = excluded.record WHERE leases.container = excluded.container",
            *(lease.network, lease.address, lease.container, encode(lease)),
        )
        if not count:
            raise Conflict(f"cannot lease `{lease.address}`: another container holds it")

    def delete_lease(self, network_id: str, address: str) -> None:
        """Give an address back.  Nothing happens if it is free."""
        self.write("DELETE FROM leases WHERE network = ? AND address = ?", network_id, address)

    # volumes

    def list_volumes(self, tenant: str | None = None) -> list[VolumeRecord]:
        """Return the volumes by name."""
        return self.records(
            VolumeRecord,
            "SELECT record FROM volumes WHERE ?1 IS NULL OR tenant = ?1 ORDER BY tenant, name",
            tenant,
        )

    def count_volumes(self, tenant: str) -> int:
        """Count a tenant's volumes, also those without a name of their own."""
        (count,) = self.read("SELECT count(*) FROM volumes WHERE tenant = ?", tenant)[0]
        return int(count or 0)

    def find_volume(self, tenant: str, name: str) -> VolumeRecord | None:
        """Return the tenant's volume of that name."""
        return self.record(
            VolumeRecord, "SELECT record FROM volumes WHERE tenant = ? AND name = ?", tenant, name
        )

    def get_volume(self, tenant: str, name: str) -> VolumeRecord:
        """Return the tenant's volume of that name.

        Raises: VolumeNotFound.
        """
        record = self.find_volume(tenant, name)
        if record is None:
            raise VolumeNotFound(f"cannot find volume `{name}`", hint="insula volume ls lists them")
        return record

    def add_volume(self, record: VolumeRecord) -> None:
        """Remember a new volume.

        Raises: NameTaken.
        """
        try:
            self.write("INSERT INTO volumes VALUES (?, ?, ?)", record.tenant, record.name, encode(record))
        except sqlite3.IntegrityError as error:
            raise volume_name_taken(record.name) from error

    def delete_volume(self, tenant: str, name: str) -> None:
        """Forget a volume.

        Raises: VolumeNotFound.
        """
        if not self.write("DELETE FROM volumes WHERE tenant = ? AND name = ?", tenant, name):
            raise VolumeNotFound(f"cannot remove volume `{name}`: there is none")

    # checkpoints

    def list_checkpoints(self, container_id: str) -> list[CheckpointRecord]:
        """Return a container's checkpoints, oldest first."""
        return self.records(
            CheckpointRecord,
            "SELECT record FROM checkpoints WHERE container = ? ORDER BY created_at, name",
            container_id,
        )

    def get_checkpoint(self, container_id: str, name: str) -> CheckpointRecord:
        """Return a container's checkpoint of that name.

        Raises: CheckpointNotFound.
        """
        statement = "SELECT record FROM checkpoints WHERE container = ? AND name = ?"
        record = self.record(CheckpointRecord, statement, container_id, name)
        if record is None:
            raise CheckpointNotFound(
                f"cannot find checkpoint `{name}`", hint="insula checkpoint ls CONTAINER lists them"
            )
        return record

    def save_checkpoint(self, record: CheckpointRecord) -> None:
        """Remember a finished checkpoint.

        Raises: NameTaken.
        """
        try:
            self.write(
                "INSERT INTO checkpoints VALUES (?, ?, ?, ?)",
                *(record.container, record.name, record.created_at, encode(record)),
            )
        except sqlite3.IntegrityError as error:
            raise NameTaken(f"cannot name a checkpoint `{record.name}`: the name is taken") from error

    def delete_checkpoint(self, container_id: str, name: str) -> None:
        """Forget a checkpoint.

        Raises: CheckpointNotFound.
        """
        if not self.write("DELETE FROM checkpoints WHERE container = ? AND name = ?", container_id, name):
            raise CheckpointNotFound(f"cannot remove checkpoint `{name}`: there is none")


def _is_id_prefix(word: str) -> bool:
    return bool(word) and _HEXADECIMAL.issuperset(word)
