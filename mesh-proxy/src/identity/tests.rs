use std::{
    os::unix::fs::PermissionsExt,
    time::{Duration, SystemTime},
};

use super::{keeper::due_in, *};

#[test]
fn keys_are_made_once_and_only_the_owner_reads_them() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let open = || Identity::open(StateFiles::open(&state).unwrap(), "cluster.local").unwrap();
    let first = open();
    assert!(first.tls.is_none());
    assert_eq!(first.tunnel_key.peer_id(), open().tunnel_key.peer_id());
    let request = first.files.request().unwrap();
    assert_eq!(request.csr, open().files.request().unwrap().csr, "a lost answer can be asked for again");
    for name in ["tunnel.key", "request.pem"] {
        let mode = std::fs::metadata(state.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn a_damaged_tunnel_key_is_an_error_and_a_damaged_certificate_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let files = StateFiles::open(dir.path()).unwrap();
    std::fs::write(dir.path().join("identity.pem"), "garbage").unwrap();
    assert!(Identity::open(files.clone(), "cluster.local").unwrap().tls.is_none());
    std::fs::write(dir.path().join("tunnel.key"), "garbage").unwrap();
    assert!(matches!(Identity::open(files, "cluster.local"), Err(IdentityError::Key { .. })));
}

#[test]
fn a_certificate_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let files = StateFiles::open(&dir.path().join("state")).unwrap();
    let domain = mesh_ca::TrustDomain::new("cluster.local").unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let ca = mesh_ca::Authority::open(&dir.path().join("ca"), &domain, now).unwrap();
    let request = files.request().unwrap();
    let node = mesh_ca::NodeName::new("edge-a").unwrap();
    let leaf = ca.sign_node(&node, &request.csr, Duration::from_secs(3600), now).unwrap();
    files.save_credentials(request.key.serialized_der(), &leaf, ca.trusted()).unwrap();
    let tls = Identity::open(files.clone(), "cluster.local").unwrap().tls.expect("an identity");
    assert_eq!(tls.identity().node(), Some("edge-a"));
    assert!(Identity::open(files.clone(), "elsewhere").unwrap().tls.is_none(), "another trust domain");
    assert_ne!(files.request().unwrap().csr, request.csr, "the next certificate has another key");
}

#[test]
fn renewal_is_due_after_two_thirds() {
    let t = |s| SystemTime::UNIX_EPOCH + Duration::from_secs(s);
    assert_eq!(due_in(t(0), t(300), t(0)), Duration::from_secs(200));
    assert_eq!(due_in(t(0), t(300), t(150)), Duration::from_secs(50));
    assert_eq!(due_in(t(0), t(300), t(1000)), Duration::ZERO);
    assert_eq!(due_in(t(300), t(0), t(1000)), Duration::ZERO);
}

#[test]
fn the_state_of_another_node_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let files = StateFiles::open(&dir.path().join("state")).unwrap();
    let domain = mesh_ca::TrustDomain::new("cluster.local").unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let ca = mesh_ca::Authority::open(&dir.path().join("ca"), &domain, now).unwrap();
    let request = files.request().unwrap();
    let node = mesh_ca::NodeName::new("edge-a").unwrap();
    let leaf = ca.sign_node(&node, &request.csr, Duration::from_secs(3600), now).unwrap();
    files.save_credentials(request.key.serialized_der(), &leaf, ca.trusted()).unwrap();
    let open = |node: &str| Identity::open_as(node, files.clone(), "cluster.local").unwrap();
    let first = open("edge-a");
    assert!(first.tls.is_some() && open("edge-a").tunnel_key.peer_id() == first.tunnel_key.peer_id());
    let renamed = open("edge-b");
    assert!(renamed.tls.is_none());
    assert_ne!(renamed.tunnel_key.peer_id(), first.tunnel_key.peer_id());
    for kept in ["identity.pem.of-edge-a", "tunnel.key.of-edge-a"] {
        assert!(dir.path().join("state").join(kept).exists(), "{kept}");
    }
    assert_eq!(open("edge-b").tunnel_key.peer_id(), renamed.tunnel_key.peer_id());
}
