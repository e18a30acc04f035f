"""A Python operator: it answers the ConfigMap `question` of each cluster with a ConfigMap `answer` of the same text."""

from milo_controllers import Controllers, Request, main

CONFIG_MAPS = "v1/configmaps"
QUESTION, ANSWER = "question", "answer"

controllers = Controllers()


@controllers.reconcile(CONFIG_MAPS)
async def reconcile(request: Request) -> None:
    question = await request.get() if request.name == QUESTION else None
    if question is not None:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": ANSWER}, "data": question["data"]}
        await request.apply(CONFIG_MAPS, body)


if __name__ == "__main__":
    main(controllers)
