//! A real Kubernetes cluster in a closed world.

fn main() {
    std::process::exit(mesh_testkit::cluster::cli::main());
}
