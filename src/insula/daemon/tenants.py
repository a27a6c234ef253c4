# SPDX-License-Identifier: Apache-2.0
"""Tenants of this host: their limits, what they use, and how they come and go.

Limits are kept in the store and read from memory; what is used is counted at each question (`tenant_use.py`).  Decisions:
`tenant/quota.py`.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from insula.daemon.tenant_use import TenantUse, Used
from insula.daemon.uid_ranges import UidRanges
from insula.model.errors import InUse, NameTaken, TenantNotFound
from insula.model.grant import Grant
from insula.model.quota import KINDS, Quota, QuotaWish, Resource, TenantView, TenantWish, Use
from insula.runtime import quotas
from insula.runtime.context import Runtime
from insula.runtime.disks import Disks
from insula.runtime.ledger import Ledger, TenantRecord
from insula.tenant import quota
from insula.tenant.idmap import uid_base
from insula.tenant.quota import DEFAULT_TENANT

OWN = "~"
"""In place of a tenant's name: the caller's, who may not know it."""


class Limits:
    """Everybody's limits, from the store once: the `Allowance` of the runtime and the API."""

    def __init__(self, store: Ledger, *, built_in: Quota) -> None:
        """built_in: what counts where neither a tenant's limits nor everybody's say anything."""
        self._store, self._built_in = store, built_in
        self._known: dict[str, Quota] = {}
        self._guard = threading.Lock()

    def quota(self, tenant: str) -> Quota:
        """Return a tenant's own limits."""
        with self._guard:
            if tenant not in self._known:
                self._known[tenant] = self._store.quota(tenant)
            return self._known[tenant]

    def save(self, tenant: str, limits: Quota) -> None:
        """Change a tenant's own limits."""
        with self._guard:
            self._store.save_quota(tenant, limits)
            self._known[tenant] = limits

    def forget(self, tenant: str) -> None:
        """Read a tenant's limits anew the next time."""
        with self._guard:
            self._known.pop(tenant, None)

    def limit(self, tenant: str, resource: Resource) -> int | None:
        """Return the limit that counts."""
        return quota.limit_of(resource, self.quota(tenant), self.quota(DEFAULT_TENANT), self._built_in)

    def check(self, tenant: str, resource: Resource, *, used: int, more: int = 1) -> None:
        """Refuse more than the limit.  Raises: QuotaExceeded."""
        quota.refuse_more(resource, limit=self.limit(tenant, resource), used=used, more=more)


@dataclass(kw_only=True)
class Tenants:
    """The API's verbs for tenants."""

    runtime: Runtime
    limits: Limits
    uid_ranges: UidRanges
    disks: Disks
    use: TenantUse

    def list_tenants(self, grant: Grant) -> list[TenantView]:
        """Return the tenants that the caller may know: all for an administrator, else its own."""
        known = self.runtime.store.list_tenants()
        return self._views([each for each in known if grant.principal.is_admin or each.name == grant.tenant])

    def get_tenant(self, grant: Grant, name: str) -> TenantView:
        """Return a tenant with what it uses; `*`: the limits of everybody, `~`: the caller's, made if it is new.

        Raises: TenantNotFound.
        """
        if name == OWN and grant.tenant == grant.principal.tenant:
            return self._view(self.uid_ranges.tenant(grant.tenant))
        if name == DEFAULT_TENANT and grant.principal.is_admin:
            return TenantView(name=name, uses=self._uses(name, used={}))
        return self._view(self._find(grant, grant.tenant if name == OWN else name))

    def create_tenant(self, grant: Grant, wish: TenantWish) -> TenantView:
        """Make a tenant before its users come, with limits of its own.  Raises: BadRequest, InvalidSpec, NameTaken."""
        del grant
        if self.runtime.store.find_tenant(wish.name) is not None:
            raise NameTaken(f"cannot make tenant `{wish.name}`: there is one")
        limits = quota.changed(Quota(), QuotaWish(limits=wish.limits))
        made = self.uid_ranges.tenant(wish.name)
        uid_base(made.position)
        self.limits.save(wish.name, limits)
        return self._view(made)

    def change_tenant(self, grant: Grant, name: str, *, wish: QuotaWish) -> TenantView:
        """Change a tenant's limits, of what runs as well; `*`: those of everybody.

        Raises: TenantNotFound, InvalidSpec; LimitRefused if more is in use than the kernel can take back.
        """
        if name != DEFAULT_TENANT:
            self._find(grant, name)
        before = self.limits.quota(name)
        self.limits.save(name, quota.changed(before, wish))
        try:
            if name != DEFAULT_TENANT:
                self._apply_disk(name, wish)
            for each in [name] if name != DEFAULT_TENANT else self._names():
                quotas.apply_limits(self.runtime, each)
        except BaseException:
            self.limits.save(name, before)
            raise
        return self.get_tenant(grant, name)

    def _apply_disk(self, name: str, wish: QuotaWish) -> None:
        changes = {*wish.limits, *wish.inherit}
        if Resource.DISK in changes:
            self.disks.apply(name)
        elif Resource.INODES in changes:
            self.disks.apply_files(name)

    def remove_tenant(self, grant: Grant, name: str) -> None:
        """Forget a tenant that owns nothing.  Its uids are never given to another.  Raises: TenantNotFound, InUse."""
        self._find(grant, name)
        store = self.runtime.store
        for kind, count in (
            ("container", store.count_containers(name)),
            ("volume", store.count_volumes(name)),
            ("profile", self.use.count_profiles(name)),
            ("image", sum(each.tenant == name for each in store.list_images())),
        ):
            if count:
                what = f"{count} {kind}{'s' if count > 1 else ''}"
                raise InUse(f"cannot remove tenant `{name}`: it has {what}", hint="remove them first")
        for network in self.runtime.networks.list(name):
            self.runtime.networks.remove(name, network.name)
        self.disks.remove(name)
        store.remove_tenant(name)
        self.limits.forget(name)

    def _names(self) -> list[str]:
        return [each.name for each in self.runtime.store.list_tenants()]

    def _find(self, grant: Grant, name: str) -> TenantRecord:
        found = self.runtime.store.find_tenant(name)
        if found is None or not (grant.principal.is_admin or name == grant.tenant):
            raise TenantNotFound(
                f"cannot find tenant `{name[:80]}`",
                hint="insula tenant ls lists them"
                + (", insula tenant create makes one" if grant.principal.is_admin else ""),
            )
        return found

    def _view(self, record: TenantRecord) -> TenantView:
        [view] = self._views([record])
        return view

    def _views(self, records: Sequence[TenantRecord]) -> list[TenantView]:
        used = self.use.of([each.name for each in records])
        return [
            TenantView(
                name=each.name,
                uid_base=uid_base(each.position),
                created_at=each.created_at,
                uses=self._uses(each.name, used=used[each.name]),
            )
            for each in records
        ]

    def _uses(self, name: str, *, used: Used) -> tuple[Use, ...]:
        own = self.limits.quota(name)
        return tuple(
            Use(
                resource=each,
                unit=KINDS[each].unit,
                used=used.get(each),
                limit=self.limits.limit(name, each),
                is_default=each not in own.limits,
                kept_by=self.disks.kind(name) if each is Resource.DISK else "",
            )
            for each in Resource
        )
