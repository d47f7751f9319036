//! Objects from a folder of manifests. File events only say *when* to look: what changed is found by comparing the folder
//! with what was read before, so that every way to write a file (in place, by rename, by another machine) counts alike.

mod copies;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use mesh_index::{Kind, ObjectKey};
use node_rt::Tasks;
use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{ModifyKind, RenameMode},
};
use serde_json::Value;
use tokio::sync::mpsc;

use super::{Health, Op, documents};
pub(crate) use copies::Copies;

/// After the first event of a burst; editors and `kubectl`-like tools write several times. By then a file that was
/// written once is settled. A file that was renamed into its place waits only for an earlier scan to be this old.
const DEBOUNCE: Duration = Duration::from_millis(35);
/// Looked at in any case this often: events get lost on network file systems and when queues overflow.
const POLL: Duration = Duration::from_secs(2);
/// A file that was written to this recently may be written to again: it is read a moment later.
const SETTLE: Duration = Duration::from_millis(30);
/// A file that became empty is most likely being rewritten; only after this long is it meant.
const SETTLE_EMPTY: Duration = Duration::from_secs(1);
const MAX_FILES: usize = 20_000;
/// Whole files that wait for their scan; one beyond it is read when it is settled, as any other.
const MAX_WHOLE: usize = 1_000;
const MAX_DEPTH: usize = 16;

/// What identifies a state of a file without reading it.
type Stamp = (SystemTime, u64, u64);

/// A manifest as read: its content is kept only until it has been delivered.
type Object = (ObjectKey, Digest, Value);
type Digest = u64;

#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    /// What the last good content says.
    objects: Vec<(ObjectKey, Digest)>,
    /// That content is from the copy: the file itself was never good since the start.
    copied: bool,
    /// The manifests, when they were read in this round.
    fresh: HashMap<ObjectKey, Value>,
}

/// The folder as last read.
pub(crate) struct Folder {
    root: PathBuf,
    files: BTreeMap<PathBuf, File>,
    /// What the index has been told.
    delivered: HashMap<ObjectKey, Digest>,
    /// Objects that are in two files.
    repeated: BTreeSet<String>,
    /// Some file has to be looked at again soon.
    unsettled: bool,
    /// What files said before this controller started.
    copies: Option<Copies>,
    whole: Whole,
    health: Health,
}

/// Files that were put in their place by a rename since the last scan: nobody is still writing them.
#[derive(Debug, Clone, Default)]
struct Whole(Arc<Mutex<HashSet<PathBuf>>>);

impl Whole {
    /// Takes note if the event says so.
    fn note(&self, event: &notify::Event) -> bool {
        let EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both)) = event.kind else {
            return false;
        };
        let Some(path) = event.paths.last().filter(|p| is_manifest(p)) else { return false };
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.len() < MAX_WHOLE && files.insert(path.clone())
    }

    fn take(&self) -> HashSet<PathBuf> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Folder {
    pub(crate) fn new(root: PathBuf, health: Health) -> Self {
        Self {
            unsettled: false,
            copies: None,
            whole: Whole::default(),
            root,
            files: BTreeMap::new(),
            delivered: HashMap::new(),
            repeated: BTreeSet::new(),
            health,
        }
    }

    /// Keeps and uses copies of what files say.
    #[must_use]
    pub(crate) fn with_copies(mut self, copies: Option<Copies>) -> Self {
        self.copies = copies;
        self
    }

    /// Looks at the folder and returns what is different.
    pub(crate) fn scan(&mut self) -> Vec<Op> {
        let whole = self.whole.take();
        match self.list() {
            Ok(found) => {
                self.health.fine("folder");
                if !self.read(found, &whole) {
                    return Vec::new();
                }
            }
            Err(error) => {
                // A folder that is away for a moment (unmounted, being replaced) deletes nothing.
                self.health.problem("folder", format!("{}: {error}", self.root.display()));
                return Vec::new();
            }
        }
        self.differences()
    }

    fn list(&self) -> io::Result<BTreeMap<PathBuf, Stamp>> {
        let mut found = BTreeMap::new();
        let mut todo = vec![(self.root.clone(), 0)];
        while let Some((dir, depth)) = todo.pop() {
            for entry in fs::read_dir(&dir)? {
                let path = entry?.path();
                if path.file_name().is_none_or(|n| n.to_string_lossy().starts_with('.')) {
                    continue;
                }
                // Follows links: mounted ConfigMaps are links.
                let Ok(meta) = fs::metadata(&path) else { continue };
                if meta.is_dir() {
                    if depth < MAX_DEPTH {
                        todo.push((path, depth + 1));
                    }
                } else if is_manifest(&path) && found.len() < MAX_FILES {
                    use std::os::unix::fs::MetadataExt;
                    found.insert(path, (meta.modified()?, meta.len(), meta.ino()));
                }
            }
        }
        Ok(found)
    }

    /// Reads files that are new or changed, those in `whole` however young they are; `true` when anything may be
    /// different.
    fn read(&mut self, found: BTreeMap<PathBuf, Stamp>, whole: &HashSet<PathBuf>) -> bool {
        self.unsettled = false;
        let before = self.files.len();
        let health = &self.health;
        self.files.retain(|path, _| {
            let kept = found.contains_key(path);
            if !kept {
                health.fine(&path.to_string_lossy());
            }
            kept
        });
        let mut changed = self.files.len() != before;
        if let Some(copies) = &mut self.copies {
            copies.retain(found.keys());
        }
        for (path, stamp) in found {
            let file = self.files.entry(path.clone()).or_default();
            if file.stamp == Some(stamp) {
                continue;
            }
            let settled = is_settled(&file.objects, stamp);
            let is_whole = stamp.1 > 0 && whole.contains(&path);
            if !settled && !is_whole && !file.objects.is_empty() {
                self.unsettled = true;
                continue;
            }
            // Within the resolution of time stamps a later write could look like this one.
            file.stamp = settled.then_some(stamp);
            self.unsettled |= !settled;
            match read_file(&path, stamp.1).and_then(|text| Ok((read_objects(&path, &text)?, text))) {
                Ok((objects, text)) => {
                    file.take(objects);
                    file.copied = false;
                    self.health.fine(&path.to_string_lossy());
                    changed = true;
                    if let Some(copies) = self.copies.as_mut().filter(|_| settled) {
                        copies.keep(&path, &text);
                    }
                }
                // What the file said before stays, also when that was to another controller.
                Err(mut reason) => {
                    let unknown = self.copies.as_ref().filter(|_| file.objects.is_empty());
                    let copy = unknown.and_then(|c| c.get(&path));
                    if let Some(objects) = copy.and_then(|text| read_objects(&path, &text).ok()) {
                        file.take(objects);
                        (file.copied, changed) = (true, true);
                    }
                    if file.copied {
                        reason.push_str("; the copy of its last good content counts");
                    }
                    self.health.problem(&path.to_string_lossy(), reason);
                }
            }
        }
        changed
    }

    fn differences(&mut self) -> Vec<Op> {
        let mut wanted: HashMap<&ObjectKey, &Path> = HashMap::new();
        let (mut changed, mut repeated) = (Vec::new(), BTreeSet::new());
        for (path, file) in &self.files {
            for (key, digest) in &file.objects {
                if let Some(first) = wanted.get(key) {
                    let reason = format!("{key} is in {} already; that one counts", first.display());
                    let part = format!("{}: {key}", path.display());
                    self.health.problem(&part, reason);
                    repeated.insert(part);
                    continue;
                }
                wanted.insert(key, path);
                if self.delivered.get(key) != Some(digest) {
                    changed.push((path.clone(), key.clone(), *digest));
                }
            }
        }
        for settled in self.repeated.difference(&repeated) {
            self.health.fine(settled);
        }
        self.repeated = repeated;
        let gone: Vec<_> = self.delivered.keys().filter(|k| !wanted.contains_key(k)).cloned().collect();
        let mut out = Vec::with_capacity(gone.len() + changed.len());
        for key in gone {
            self.delivered.remove(&key);
            out.push(Op::Delete(key));
        }
        for (path, key, digest) in changed {
            let Some(file) = self.files.get_mut(&path) else { continue };
            match file.fresh.remove(&key) {
                Some(value) => {
                    self.delivered.insert(key, digest);
                    out.push(Op::Apply(value));
                }
                // It was in another file too, which is gone: read this one again.
                None => (file.stamp, self.unsettled) = (None, true),
            }
        }
        for file in self.files.values_mut() {
            file.fresh = HashMap::new();
        }
        out
    }
}

impl File {
    fn take(&mut self, objects: Vec<Object>) {
        self.objects = objects.iter().map(|(key, digest, _)| (key.clone(), *digest)).collect();
        self.fresh = objects.into_iter().map(|(key, _, value)| (key, value)).rev().collect();
    }
}

fn is_settled(objects: &[(ObjectKey, Digest)], (modified, size, _): Stamp) -> bool {
    let wait = if size == 0 && !objects.is_empty() { SETTLE_EMPTY } else { SETTLE };
    // A time in the future says nothing about now.
    modified.elapsed().map_or(true, |age| age >= wait)
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
}

fn read_file(path: &Path, size: u64) -> Result<String, String> {
    if size > documents::MAX_FILE_BYTES {
        return Err(format!("{size} bytes exceed the limit of {}", documents::MAX_FILE_BYTES));
    }
    fs::read_to_string(path).map_err(|e| e.to_string())
}

fn read_objects(path: &Path, text: &str) -> Result<Vec<Object>, String> {
    let objects = documents::parse(text, path.extension().is_some_and(|e| e == "json"))?;
    let mut out = Vec::with_capacity(objects.len());
    for (i, object) in objects.into_iter().enumerate() {
        let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        // Kinds that the mesh does not read are none of its business.
        if Kind::of(api_version, kind).is_none() {
            continue;
        }
        let key = ObjectKey::of(&object)
            .ok_or_else(|| format!("object {} ({kind}): metadata.name is missing or not a text", i + 1))?;
        let mut hasher = DefaultHasher::new();
        object.hash(&mut hasher);
        out.push((key, hasher.finish(), object));
    }
    Ok(out)
}

/// Watches a folder until the drain.
pub(crate) fn start(folder: Folder, sender: mpsc::Sender<Vec<Op>>, tasks: &Tasks) {
    let drain = tasks.drain().clone();
    tasks.spawn_critical("dir source", async move {
        tokio::select! {
            () = watch(folder, sender) => {}
            () = drain.stop_accepting() => {}
        }
    });
}

async fn watch(mut folder: Folder, sender: mpsc::Sender<Vec<Op>>) {
    let (root, health, whole) = (folder.root.clone(), folder.health.clone(), folder.whole.clone());
    // One slot: a second event before the scan says nothing new.
    let (wake, mut woken) = mpsc::channel::<()>(1);
    let (wake_now, mut woken_now) = mpsc::channel::<()>(1);
    let mut watcher = None;
    let mut first = true;
    loop {
        if watcher.is_none() {
            let (whole, wake, wake_now) = (whole.clone(), wake.clone(), wake_now.clone());
            watcher = watch_events(&root, &health, move |event| {
                let wake = if whole.note(event) { &wake_now } else { &wake };
                wake.try_send(()).ok();
            });
        }
        let started = Instant::now();
        let scanned = tokio::task::spawn_blocking(move || {
            let ops = folder.scan();
            (folder, ops)
        });
        let Ok((back, mut ops)) = scanned.await else { return };
        folder = back;
        if std::mem::take(&mut first) {
            ops.push(Op::Synced);
        }
        if !ops.is_empty() && sender.send(ops).await.is_err() {
            return;
        }
        let pause = if folder.unsettled { SETTLE } else { POLL };
        let whole = tokio::select! {
            biased;
            _ = woken_now.recv() => true,
            _ = woken.recv() => tokio::select! {
                biased;
                _ = woken_now.recv() => true,
                () = tokio::time::sleep(DEBOUNCE) => false,
            },
            () = tokio::time::sleep(pause) => false,
        };
        // One that comes alone is read at once, those that follow it closely are read together.
        let since = started.elapsed();
        if whole && since < DEBOUNCE {
            tokio::time::sleep(DEBOUNCE.saturating_sub(since)).await;
        }
        while woken.try_recv().is_ok() {}
    }
}

/// Without events the folder is still looked at regularly, so a failure here is only said.
fn watch_events(
    root: &Path,
    health: &Health,
    tell: impl Fn(&notify::Event) + Send + 'static,
) -> Option<RecommendedWatcher> {
    let notify = move |event: notify::Result<notify::Event>| {
        // Reading a file raises events too; looking at them would never end.
        if let Some(event) = event.ok().filter(|e| !e.kind.is_access()) {
            tell(&event);
        }
    };
    let started = notify::recommended_watcher(notify).and_then(|mut watcher| {
        watcher.watch(root, RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    match started {
        Ok(watcher) => {
            health.fine("file events");
            Some(watcher)
        }
        Err(error) => {
            health.problem("file events", error.to_string());
            None
        }
    }
}

#[cfg(test)]
mod tests;
