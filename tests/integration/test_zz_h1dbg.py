import sys; sys.path.insert(0,'/work/main/tests/integration')
from test_dependencies import *
import test_dependencies as t
@pytest.fixture(autouse=True)
def nothing_is_left(girder_stack):
    yield
    time.sleep(3)
    def show(plugin):
        return {"tasks":[(str(k), ts.state, [c.client_key for c in ts.who_wants or ()], [d.key for d in ts.dependents],[d.key for d in ts.waiters or ()]) for k,ts in plugin._scheduler.tasks.items()], "kept":list(plugin.dispatcher.kept._values), "hands":len(plugin.dispatcher), "needs": plugin.dispatcher._needs._dependents, "clients": list(plugin._scheduler.clients)}
    print(on_scheduler(girder_stack, show))
