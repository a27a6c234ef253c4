# SPDX-License-Identifier: Apache-2.0
"""Images: list, import from a tar stream, build, remove."""

from aiohttp import web

from insula.api.bodies import NameQuery
from insula.api.call import Call, answer, empty
from insula.api.transfer import upload
from insula.api.verbs import Reporter, Result
from insula.model.errors import NotPermitted
from insula.model.record import ImageRecord
from insula.model.spec import ImageBuildWish


async def list_all(call: Call) -> web.StreamResponse:
    found = await call.run(call.api.verbs.list_images, call.grant)
    return answer([_told(call, each) for each in found])


async def inspect(call: Call) -> web.StreamResponse:
    return answer(_told(call, await call.run(call.api.verbs.get_image, call.grant, call.ref)))


def _told(call: Call, image: ImageRecord) -> ImageRecord:
    """Return what the caller is told of an image; one of the system's is everybody's."""
    return call.redaction(image.tenant or call.grant.tenant).image(image)


async def delete(call: Call) -> web.StreamResponse:
    await call.run(call.api.verbs.delete_image, call.grant, call.ref)
    return empty()


async def import_tar(call: Call) -> web.StreamResponse:
    name = call.query(NameQuery).name
    verb = call.api.verbs.import_image
    made = await upload(call, lambda source: verb(call.grant, name, source=source))
    call.deed.creates(made.id, name=name)
    return answer(_told(call, made), status=201)


async def build(call: Call) -> web.StreamResponse:
    wish = await call.body(ImageBuildWish)
    if wish.mirror and not call.grant.principal.is_admin:
        # This host fetches from there, from within: its own services and those of its network would answer.
        raise NotPermitted(
            f"cannot build from mirror `{wish.mirror[:80]}`: only an admin names one",
            hint="leave out --mirror: this host's own is used",
        )

    def work(reporter: Reporter) -> Result:
        return call.api.verbs.build_image(call.grant, wish, reporter=reporter)

    operation = call.api.operations.start(
        work,
        kind="image-build",
        tenant=call.grant.tenant,
        asker=call.grant.principal.tenant,
        subject=wish.name,
        may_cancel=True,
    )
    return answer(operation, status=202)
