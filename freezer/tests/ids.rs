//! Ids that a restore would not find free.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::Subject;

#[test]
fn a_group_with_members_outside_is_refused() {
    let script = r#"
import os, time
leader = os.fork()
if leader:
    os.setpgid(leader, leader)
    if os.fork() == 0:
        os.setpgid(0, leader)
time.sleep(1000)
"#;
    let subject = Subject::python("group", script);
    let children = freezer::proc::children(subject.pid()).unwrap();
    let (leader, member) = (children[0], children[1]);
    assert_eq!(freezer::check::check_tree(subject.pid()).unwrap(), []);
    assert_eq!(freezer::check::check_tree(member).unwrap(), []);
    let refused = freezer::check::check_tree(leader).unwrap();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0].resource, "process group");
    assert!(refused[0].reason.contains("not part of the tree"));
}
