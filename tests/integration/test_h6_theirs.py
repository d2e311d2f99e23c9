from test_side_by_side import *
import json
del test_show
def test_theirs(girder_stack, worker_site):
    t=time.monotonic()
    runs=[Run(worker_site,n) for n in STARTS]
    for r in runs: r.start()
    print("started", time.monotonic()-t)
    pending=runs; dl=time.monotonic()+40
    while pending and time.monotonic()<dl:
        pending=[r for r in pending if not r.ended()]; time.sleep(.1)
    print("ended", time.monotonic()-t)
    for r in pending: print("PENDING", r.name, [(j['title'],j['status'],r.log(j)) for j in r.jobs()])
    for r in runs:
        s=r.look()
        print("==",r.name)
        for j in s.jobs: print(j)
        print(s.files, s.metadata)
    print(json.dumps(runs[0].user.client.get("ported/described")))
    assert 0, worker_site.recent_logs(80)
