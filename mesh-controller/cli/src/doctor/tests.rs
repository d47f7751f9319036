use super::*;

#[test]
fn every_check_says_what_it_found_and_how_to_mend_it() {
    let checks = [
        Check::ok("dns", "answers"),
        Check::warn("mtu", "1300 bytes", "Raise it."),
        Check::fail("proxy", "does not run", "Start it."),
    ];
    assert_eq!(
        text(&checks),
        "ok    dns           answers\n\
         warn  mtu           1300 bytes\n\
         \x20                   Raise it.\n\
         fail  proxy         does not run\n\
         \x20                   Start it.\n\
         1 ok, 1 to look at, 1 wrong\n"
    );
    let json = serde_json::to_value(&checks[1]).unwrap();
    assert_eq!(
        json,
        serde_json::json!({ "check": "mtu", "status": "warn", "found": "1300 bytes", "fix": "Raise it." })
    );
}
