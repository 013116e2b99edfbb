//! Which kind of failure each error is: the one place that maps operations to exit codes.

use crate::boot::initramfs::InitramfsError;
use crate::boot::{BootError, KernelError, SmallGuestError};
use crate::bundle::{DraftError, OpenError, VerifyError};
use crate::config::{ConfigError, EventError, InvalidError};
use crate::devices::DeviceError;
use crate::function::SessionError;
use crate::jail::{BoundError, ForkError, JailError, SeccompError};
use crate::memory::PagerError;
use crate::rootfs::{DetectError, RootfsError};
use crate::vm::{
    BuildError, CaptureError, DriveError, IdentityError, InvokeError, LoadError, RecordingError,
    RequestError, RunError, StartError, WarmError,
};

use super::limits::TooLong;
use super::{Kind, ToFailure};

/// Errors that are of one kind whatever their variant.
macro_rules! always {
    ($($error:ty => $kind:ident),* $(,)?) => {
        $(impl ToFailure for $error {
            fn kind(&self) -> Kind {
                Kind::$kind
            }
        })*
    };
}

always! {
    ConfigError => Usage,
    EventError => Usage,
    InvalidError => Usage,
    InitramfsError => Usage,
    KernelError => Usage,
    SmallGuestError => Usage,
    DetectError => Usage,
    DeviceError => HostCannot,
    ForkError => HostCannot,
    BoundError => HostCannot,
    JailError => HostCannot,
    SeccompError => HostCannot,
    CaptureError => HostCannot,
    IdentityError => HostCannot,
    RunError => GuestFailed,
}

impl ToFailure for OpenError {
    fn kind(&self) -> Kind {
        if self.is_bad_bundle() { Kind::BadBundle } else { Kind::HostCannot }
    }
}

impl ToFailure for VerifyError {
    fn kind(&self) -> Kind {
        if self.is_bad_bundle() { Kind::BadBundle } else { Kind::HostCannot }
    }
}

impl ToFailure for DraftError {
    fn kind(&self) -> Kind {
        match self {
            DraftError::Target { .. } | DraftError::Exists { .. } | DraftError::Foreign { .. } => Kind::Usage,
            DraftError::Damaged { .. } => Kind::BadBundle,
            DraftError::Other(error) => error.kind(),
            _ => Kind::HostCannot,
        }
    }
}

impl ToFailure for SessionError {
    fn kind(&self) -> Kind {
        match self {
            SessionError::TooLarge { .. }
            | SessionError::WrongInterface { .. }
            | SessionError::Request { .. }
            | SessionError::Env { .. }
            | SessionError::HostName { .. }
            | SessionError::Contract { .. } => Kind::Usage,
            SessionError::Version { .. } => Kind::BadBundle,
            SessionError::NotUnique { .. } => Kind::NotUnique,
            SessionError::TimedOut { .. } => Kind::Timeout,
            _ => Kind::GuestFailed,
        }
    }
}

impl ToFailure for DriveError {
    fn kind(&self) -> Kind {
        match self {
            DriveError::Session(error) => error.kind(),
            DriveError::Confine(_) => Kind::HostCannot,
            _ => Kind::GuestFailed,
        }
    }
}

impl ToFailure for InvokeError {
    fn kind(&self) -> Kind {
        match self {
            InvokeError::Drive(error) => error.kind(),
            InvokeError::Session(error) => error.kind(),
            InvokeError::NotUnique(_) => Kind::NotUnique,
            InvokeError::Sink(reason) => match TooLong::of(reason) {
                Some(TooLong::Limit { .. }) => Kind::GuestFailed,
                Some(TooLong::Json) => Kind::Usage,
                None => Kind::Internal,
            },
        }
    }
}

impl ToFailure for WarmError {
    fn kind(&self) -> Kind {
        match self {
            WarmError::Guest(error) | WarmError::WarmUp { source: error, .. } => error.kind(),
            WarmError::WarmUpFailed { .. } => Kind::GuestFailed,
            WarmError::StaleRng => Kind::Usage,
        }
    }
}

impl ToFailure for LoadError {
    fn kind(&self) -> Kind {
        match self {
            LoadError::Linux(
                BootError::TooLittleMemory { .. }
                | BootError::CommandLine { .. }
                | BootError::Initramfs { .. },
            ) => Kind::Usage,
            LoadError::Linux(_) => Kind::HostCannot,
            LoadError::Small(error) => error.kind(),
            LoadError::Kernel(error) => error.kind(),
        }
    }
}

impl ToFailure for BuildError {
    fn kind(&self) -> Kind {
        match self {
            BuildError::Load(error) => error.kind(),
            BuildError::Device(error) if error.is_bad_state() => Kind::BadBundle,
            BuildError::Vcpu(error) if error.is_bad_state() => Kind::BadBundle,
            _ => Kind::HostCannot,
        }
    }
}

impl ToFailure for StartError {
    fn kind(&self) -> Kind {
        match self {
            StartError::Bundle(error) => error.kind(),
            StartError::System(_) => Kind::HostCannot,
            StartError::Saved(_) => Kind::BadBundle,
            StartError::Build(error) => error.kind(),
            StartError::Load(_) => Kind::BadBundle,
            StartError::Verify(error) => error.kind(),
            StartError::Chunk(error) if error.is_bad_content() => Kind::BadBundle,
            StartError::Map(_)
            | StartError::Paged(_)
            | StartError::Record(_)
            | StartError::MemoryFile(_)
            | StartError::Chunk(_)
            | StartError::Prefetch(_)
            | StartError::Watch(_)
            | StartError::VmThread
            | StartError::ShellShape
            | StartError::ShellPaging
            | StartError::ShellBoot
            | StartError::Delta { .. } => Kind::HostCannot,
        }
    }
}

impl ToFailure for RecordingError {
    fn kind(&self) -> Kind {
        match self {
            RecordingError::Start(error) => error.kind(),
            RecordingError::Identity(error) => error.kind(),
            RecordingError::Open(error) => error.kind(),
            RecordingError::Record(_) | RecordingError::Written(_) => Kind::HostCannot,
            RecordingError::Run(_) | RecordingError::Failed { .. } => Kind::GuestFailed,
            RecordingError::Session(error) => error.kind(),
            RecordingError::NoAnswer { source, .. } => source.kind(),
        }
    }
}

impl ToFailure for RequestError {
    fn kind(&self) -> Kind {
        match self {
            RequestError::Foreign => Kind::Usage,
            RequestError::Identity(error) => error.kind(),
        }
    }
}

impl ToFailure for PagerError {
    fn kind(&self) -> Kind {
        match self {
            PagerError::Chunk(error) if error.is_bad_content() => Kind::BadBundle,
            _ => Kind::HostCannot,
        }
    }
}

impl ToFailure for RootfsError {
    fn kind(&self) -> Kind {
        match self {
            RootfsError::Source(_) | RootfsError::Resize => Kind::Usage,
            _ => Kind::HostCannot,
        }
    }
}
