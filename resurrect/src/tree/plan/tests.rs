use super::*;

fn zombie(pid: i32, ppid: i32, pgid: i32, sid: i32) -> Process {
    Process {
        pid: Pid(pid),
        ppid: Pid(ppid),
        parent_thread: None,
        place: 0,
        pgid: Pid(pgid),
        sid: Pid(sid),
        exit_signal: 17,
        state: State::Zombie {
            status: 0,
            signals: [0; 2],
            remains: Box::default(),
            limits: Vec::new(),
        },
    }
}

#[test]
fn children_are_born_in_their_order() {
    let mut all = [(9, 1), (20, 9), (21, 9), (22, 9)].map(|(pid, by)| zombie(pid, by, 9, 9));
    for (process, place) in all.iter_mut().zip([0, 2, 0, 1]) {
        process.place = place;
    }
    let steps = plan(&all, OUTSIDE).unwrap();
    let born = steps.iter().filter_map(|step| match step {
        Step::Fork { pid, .. } => Some(pid.0),
        _ => None,
    });
    assert_eq!(born.collect::<Vec<_>>(), [9, 21, 22, 20]);
}

const OUTSIDE: Outside = Outside {
    sid: Pid(7),
    pgid: Pid(8),
};

/// What the kernel would do: (parent, group, session) of every process at the end.
fn simulate(steps: &[Step], reaper: Pid) -> BTreeMap<Pid, (Pid, Pid, Pid)> {
    let mut world: BTreeMap<Pid, (Pid, Pid, Pid)> = BTreeMap::new();
    let none = Pid(0);
    for step in steps {
        match *step {
            Step::Fork { pid, by: None, .. } => {
                world.insert(pid, (none, OUTSIDE.pgid, OUTSIDE.sid));
            }
            Step::Fork {
                pid,
                by: Some(by),
                sibling,
            } => {
                let (parent, pgid, sid) = world[&by];
                world.insert(pid, (if sibling { parent } else { by }, pgid, sid));
            }
            Step::Session(pid) => {
                let parent = world[&pid].0;
                assert!(
                    !world.values().any(|w| w.1 == pid),
                    "setsid of a group leader"
                );
                world.insert(pid, (parent, pid, pid));
            }
            Step::Group { pid, pgid } => {
                let sid = world[&pid].2;
                let exists = world.values().any(|w| w.1 == pgid && w.2 == sid);
                let ours = (pgid, sid) == (OUTSIDE.pgid, OUTSIDE.sid);
                assert!(pid == pgid || exists || ours, "group {pgid} is not there");
                assert_ne!(sid, pid, "session leaders cannot move");
                world.entry(pid).and_modify(|w| w.1 = pgid);
            }
            Step::Subreaper(_) => {}
            Step::End { pid, .. } => {
                world.remove(&pid);
                for place in world.values_mut().filter(|w| w.0 == pid) {
                    place.0 = reaper;
                }
            }
        }
    }
    world
}

fn check(processes: &[Process]) {
    let steps = plan(processes, OUTSIDE);
    let told = || {
        processes
            .iter()
            .map(|p| (p.pid.0, p.ppid.0, p.pgid.0, p.sid.0))
    };
    let steps = steps.unwrap_or_else(|why| panic!("{why:?}: {:?}", told().collect::<Vec<_>>()));
    let world = simulate(&steps, processes[0].pid);
    assert_eq!(world.len(), processes.len(), "{steps:?}");
    for (n, p) in processes.iter().enumerate() {
        let parent = if n == 0 { Pid(0) } else { p.ppid };
        assert_eq!(
            world[&p.pid],
            (parent, p.pgid, p.sid),
            "{}: {steps:?}",
            p.pid
        );
    }
}

#[test]
fn a_job_below_a_session_leader() {
    check(&[
        zombie(100, 1, 100, 100),
        zombie(101, 100, 101, 100),
        zombie(102, 100, 101, 100),
        zombie(103, 102, 101, 100),
    ]);
}

#[test]
fn a_root_in_our_session_and_a_daemon() {
    check(&[
        zombie(100, 1, 8, 7),
        zombie(101, 100, 101, 101),
        zombie(102, 101, 101, 101),
    ]);
}

#[test]
fn leaders_that_are_gone() {
    check(&[
        zombie(100, 1, 100, 55),
        zombie(101, 100, 90, 55),
        zombie(102, 100, 90, 55),
        zombie(103, 100, 60, 60),
        zombie(104, 103, 60, 60),
    ]);
}

#[test]
fn forked_before_setsid() {
    check(&[
        zombie(100, 1, 100, 100),
        zombie(101, 100, 101, 101),
        zombie(102, 101, 100, 100),
    ]);
}

#[test]
fn forked_before_several_have_called_setsid() {
    check(&[
        zombie(100, 1, 100, 100),
        zombie(101, 100, 101, 101),
        zombie(102, 101, 102, 102),
        zombie(103, 102, 103, 103),
        zombie(104, 103, 100, 100),
    ]);
}

/// The first is the reaper of orphans: 103 was forked by somebody in session 102 who has ended.
#[test]
fn an_orphan_that_forked_before_it_called_setsid() {
    check(&[
        zombie(1, 0, 8, 7),
        zombie(102, 1, 102, 102),
        zombie(103, 1, 103, 103),
        zombie(104, 103, 102, 102),
    ]);
}

#[test]
fn orphans_of_a_live_session() {
    check(&[
        zombie(1, 0, 8, 7),
        zombie(20, 1, 20, 20),
        zombie(21, 1, 21, 20),
        zombie(30, 20, 30, 30),
        zombie(31, 1, 30, 30),
    ]);
}

/// Whatever processes have done before, there is a way to where they are.
#[test]
fn any_history_has_a_plan() {
    let mut seed: u32 = 1;
    let mut any = move |below: usize| {
        seed = seed.wrapping_mul(1_103_515_245).wrapping_add(12345);
        (seed >> 16) as usize % below
    };
    for round in 0..3000 {
        let mut world: BTreeMap<Pid, (Pid, Pid, Pid)> = BTreeMap::new();
        world.insert(Pid(1), (Pid(0), OUTSIDE.pgid, OUTSIDE.sid));
        for pid in (100..).take(12 + round % 30) {
            let all: Vec<Pid> = world.keys().copied().collect();
            let who = all[any(all.len())];
            let (parent, pgid, sid) = world[&who];
            match any(8) {
                0 if !world.values().any(|w| w.1 == who) => {
                    world.insert(who, (parent, who, who));
                }
                1 if sid != who && world.values().all(|w| w.1 != who || w.2 == sid) => {
                    world.insert(who, (parent, who, sid));
                }
                2 if sid != who => {
                    let groups = world.values().filter(|w| w.2 == sid).map(|w| w.1);
                    let groups: Vec<Pid> = groups.collect();
                    world.insert(who, (parent, groups[any(groups.len())], sid));
                }
                3 if who != Pid(1) => {
                    world.remove(&who);
                    let orphans = world.values_mut().filter(|w| w.0 == who);
                    orphans.for_each(|w| w.0 = Pid(1));
                }
                _ => {
                    world.insert(Pid(pid), (who, pgid, sid));
                }
            }
        }
        let processes = world
            .iter()
            .map(|(pid, w)| zombie(pid.0, w.0.0, w.1.0, w.2.0));
        check(&processes.collect::<Vec<_>>());
    }
}
