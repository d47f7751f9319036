use super::*;

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n---\n"
    )
}

struct Fixture {
    dir: tempfile::TempDir,
    folder: Folder,
    health: Health,
}

impl Fixture {
    fn new() -> Self {
        let (dir, health) = (tempfile::tempdir().unwrap(), Health::default());
        let folder = Folder::new(dir.path().to_owned(), health.clone());
        Self { dir, folder, health }
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// `+name:port` for applied, `-name` for deleted services.
    fn scan(&mut self) -> Vec<String> {
        let show = |op: Op| match op {
            Op::Apply(v) => {
                let (name, port) = (v["metadata"]["name"].as_str().unwrap(), &v["spec"]["ports"][0]["port"]);
                format!("+{name}:{port}")
            }
            Op::Delete(k) => format!("-{}", k.name),
            other => format!("{other:?}"),
        };
        let mut ops: Vec<_> = self.folder.scan().into_iter().map(show).collect();
        while self.folder.unsettled {
            std::thread::sleep(Duration::from_millis(5));
            ops.extend(self.folder.scan().into_iter().map(show));
        }
        ops.sort();
        ops
    }

    fn problems(&self) -> BTreeMap<String, String> {
        self.health.snapshot().problems
    }
}

#[test]
fn only_differences_are_delivered() {
    let mut f = Fixture::new();
    f.write("a.yaml", &(service("a", 1) + &service("b", 1)));
    f.write("sub/c.yml", &service("c", 1));
    f.write("notes.txt", "not a manifest");
    f.write(".hidden.yaml", "[");
    assert_eq!(f.scan(), ["+a:1", "+b:1", "+c:1"]);
    assert!(f.scan().is_empty());
    f.write("a.yaml", &(service("a", 1) + &service("b", 22)));
    assert_eq!(f.scan(), ["+b:22"]);
    fs::remove_dir_all(f.dir.path().join("sub")).unwrap();
    f.write("a.yaml", &service("b", 22));
    assert_eq!(f.scan(), ["-a", "-c"]);
    assert!(f.problems().is_empty());
}

#[test]
fn a_bad_file_is_named_and_its_last_good_content_stays() {
    let mut f = Fixture::new();
    f.write("a.yaml", &service("a", 1));
    f.write("b.yaml", "kind: [");
    assert_eq!(f.scan(), ["+a:1"]);
    assert!(f.problems().keys().any(|p| p.ends_with("b.yaml")), "{:?}", f.problems());
    f.write("a.yaml", "kind: Service\n  bad: indent");
    assert!(f.scan().is_empty());
    assert_eq!(f.problems().len(), 2);
    f.write("a.yaml", &service("a", 22));
    f.write("b.yaml", &service("b", 1));
    assert_eq!(f.scan(), ["+a:22", "+b:1"]);
    assert!(f.problems().is_empty(), "{:?}", f.problems());
    // Deleting a bad file ends the problem and takes its objects.
    f.write("b.yaml", "kind: [ [");
    f.scan();
    fs::remove_file(f.dir.path().join("b.yaml")).unwrap();
    assert_eq!(f.scan(), ["-b"]);
    assert!(f.problems().is_empty());
}

#[test]
fn a_file_replaced_by_rename_counts() {
    let mut f = Fixture::new();
    f.write("a.yaml", &service("a", 1));
    f.scan();
    f.write("tmp", &service("a", 2));
    fs::rename(f.dir.path().join("tmp"), f.dir.path().join("a.yaml")).unwrap();
    assert_eq!(f.scan(), ["+a:2"]);
}

#[test]
fn a_file_that_was_renamed_into_its_place_is_read_at_once() {
    let mut f = Fixture::new();
    let (tmp, a, b) = (f.dir.path().join("tmp"), f.dir.path().join("a.yaml"), f.dir.path().join("b.yaml"));
    let renamed = |to: &Path| {
        notify::Event::new(EventKind::Modify(ModifyKind::Name(RenameMode::To))).add_path(to.to_owned())
    };
    assert!(!f.folder.whole.note(&renamed(&tmp)), "no manifest");
    assert!(!f.folder.whole.note(&notify::Event::new(EventKind::Any).add_path(b)));
    f.write("a.yaml", &service("a", 1));
    f.write("b.yaml", &service("b", 1));
    f.scan();
    // Where the machine was slow, the other file is settled too, and nothing is seen.
    for port in 2..100 {
        let start = Instant::now();
        f.write("tmp", &service("a", port));
        f.write("b.yaml", &service("b", port));
        fs::rename(&tmp, &a).unwrap();
        assert!(f.folder.whole.note(&renamed(&a)));
        let ops = f.folder.scan();
        if start.elapsed() < SETTLE {
            assert!(matches!(&ops[..], [Op::Apply(v)] if v["metadata"]["name"] == "a"), "{ops:?}");
            assert!(f.folder.unsettled, "both are looked at once more");
            assert_eq!(f.scan(), [format!("+b:{port}")]);
            return;
        }
        f.scan();
    }
    panic!("this machine is too slow to tell");
}

#[test]
fn an_object_in_two_files_is_said_and_the_first_counts() {
    let mut f = Fixture::new();
    f.write("a.yaml", &service("x", 1));
    f.write("b.yaml", &service("x", 2));
    assert_eq!(f.scan(), ["+x:1"]);
    assert_eq!(f.problems().len(), 1);
    fs::remove_file(f.dir.path().join("a.yaml")).unwrap();
    assert_eq!(f.scan(), ["+x:2"]);
    assert!(f.problems().is_empty(), "{:?}", f.problems());
}

#[test]
fn a_folder_that_is_away_deletes_nothing() {
    let mut f = Fixture::new();
    f.write("m/a.yaml", &service("a", 1));
    f.folder = Folder::new(f.dir.path().join("m"), f.health.clone());
    assert_eq!(f.scan(), ["+a:1"]);
    fs::rename(f.dir.path().join("m"), f.dir.path().join("away")).unwrap();
    assert!(f.scan().is_empty());
    assert!(f.problems().contains_key("folder"));
    fs::rename(f.dir.path().join("away"), f.dir.path().join("m")).unwrap();
    assert!(f.scan().is_empty());
    assert!(f.problems().is_empty());
}

#[test]
fn a_file_that_is_being_rewritten_is_not_empty() {
    let mut f = Fixture::new();
    f.write("a.yaml", &service("a", 1));
    assert_eq!(f.scan(), ["+a:1"]);
    f.write("a.yaml", "");
    assert!(f.folder.scan().is_empty());
    std::thread::sleep(SETTLE * 2);
    assert!(f.folder.scan().is_empty() && f.folder.unsettled);
    f.write("a.yaml", &service("a", 2));
    assert_eq!(f.scan(), ["+a:2"]);
    // Emptied for good, it is believed.
    f.write("a.yaml", "");
    assert_eq!(f.scan(), ["-a"]);
}

#[test]
fn a_second_write_in_the_same_tick_is_seen() {
    let mut f = Fixture::new();
    let path = f.dir.path().join("a.yaml");
    f.write("a.yaml", &service("a", 1));
    let stamp = fs::metadata(&path).unwrap().modified().unwrap();
    assert_eq!(f.folder.scan().len(), 1);
    // Same inode, same size, same time.
    f.write("a.yaml", &service("a", 2));
    fs::File::options().write(true).open(&path).unwrap().set_modified(stamp).unwrap();
    assert_eq!(f.scan(), ["+a:2"]);
}

#[test]
fn an_object_without_a_name_is_said() {
    let mut f = Fixture::new();
    f.write("a.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: [a]}\n");
    f.write("b.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {}\n");
    assert!(f.scan().is_empty());
    let problems: Vec<_> = f.problems().into_values().collect();
    assert_eq!(problems, ["object 1 (Service): metadata.name is missing or not a text"]);
}

#[test]
fn a_file_that_is_broken_at_the_start_says_what_it_said_before() {
    let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let open = || Some(Copies::open(state.path().join("last-good")).unwrap());
    let mut f = Fixture::new();
    f.dir = dir;
    let start = |f: &mut Fixture| {
        f.health = Health::default();
        f.folder = Folder::new(f.dir.path().to_owned(), f.health.clone()).with_copies(open());
    };
    start(&mut f);
    f.write("a.yaml", &service("a", 1));
    f.write("b.yaml", &service("b", 1));
    assert_eq!(f.scan(), ["+a:1", "+b:1"]);
    // Without a controller, one file breaks and the other changes.
    f.write("a.yaml", "kind: [");
    f.write("b.yaml", &service("b", 2));
    start(&mut f);
    assert_eq!(f.scan(), ["+a:1", "+b:2"]);
    let problems: Vec<String> = f.problems().into_values().collect();
    assert!(problems.len() == 1 && problems[0].ends_with("last good content counts"), "{problems:?}");
    // Mended, it counts again; removed, nothing of it is left.
    f.write("a.yaml", &service("a", 3));
    assert_eq!(f.scan(), ["+a:3"]);
    assert!(f.problems().is_empty());
    fs::remove_file(f.dir.path().join("a.yaml")).unwrap();
    assert_eq!(f.scan(), ["-a"]);
    f.write("a.yaml", "kind: [");
    start(&mut f);
    assert_eq!(f.scan(), ["+b:2"], "what was removed does not come back");
}
