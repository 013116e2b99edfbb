//! The variables by which tests, benches and the demo find things, wherever they run.

use std::path::Path;

use crate::rig::Contents;
use crate::workspace::Workspace;

/// Names and values.
pub type Environment = Vec<(&'static str, String)>;

/// Where the program with faults lies on the emulated host's disk.
pub const FAULTY: &str = "bin/ember-with-faults";

/// On this machine.
pub fn native(workspace: &Workspace, contents: &Contents, bundles: &Path) -> Environment {
    let guest = &contents.guest;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let faulty = contents.product.faulty.as_deref().map(|path| ("EMBER_FAULTY_BIN", text(path)));
    let mut environment = vec![
        ("EMBER_BIN", text(&contents.product.ember)),
        ("EMBER_AGENT", text(&contents.product.agent)),
        ("EMBER_KERNEL", text(&guest.kernel)),
        ("EMBER_MODULES", text(&guest.modules)),
        ("EMBER_BUSYBOX", text(&guest.busybox)),
        ("EMBER_ROOT_PYTHON", text(&guest.python_image)),
        ("EMBER_ROOT_STRESS", text(&guest.stress_image)),
        ("EMBER_EXAMPLES", text(&workspace.path("examples"))),
        ("EMBER_BENCHES", text(&workspace.path("benches"))),
        ("EMBER_GOLDENS", text(&workspace.path("snapshot-format/tests/goldens"))),
        ("EMBER_SMALL_GUESTS", text(&contents.small_guests)),
        ("EMBER_BUNDLES", text(bundles)),
        ("EMBER_WHERE", "native".to_owned()),
    ];
    environment.extend(faulty);
    environment
}

/// In the emulated host, whose read-only disk is mounted at /ember.
pub fn rig(contents: &Contents) -> Environment {
    let on_disk = |path: &str| format!("/ember/{path}");
    let faulty = contents.product.faulty.as_ref().map(|_| ("EMBER_FAULTY_BIN", on_disk(FAULTY)));
    let mut environment = vec![
        ("EMBER_BIN", on_disk("bin/ember")),
        ("EMBER_AGENT", on_disk("bin/ember-agent")),
        ("EMBER_KERNEL", on_disk("guest/vmlinuz")),
        ("EMBER_MODULES", on_disk(&format!("guest/lib/modules/{}", contents.guest.release))),
        ("EMBER_BUSYBOX", "/bin/busybox".to_owned()),
        ("EMBER_ROOT_PYTHON", on_disk("guest/python-root.ext4")),
        ("EMBER_ROOT_STRESS", on_disk("guest/stress-root.ext4")),
        ("EMBER_EXAMPLES", on_disk("examples")),
        ("EMBER_BENCHES", on_disk("benches")),
        ("EMBER_GOLDENS", on_disk("goldens")),
        ("EMBER_SMALL_GUESTS", on_disk("small-guests")),
        ("EMBER_BUNDLES", "/cache/bundles".to_owned()),
        ("EMBER_WHERE", "rig".to_owned()),
        // There a cold start takes seconds.
        ("EMBER_BENCH_PAIRS", "3".to_owned()),
    ];
    environment.extend(faulty);
    environment
}
