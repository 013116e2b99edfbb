//! The devices' saved states, between the reader of the `state` file and the table.

use snapshot_format::sections::{BlockState, PortState, RngState, SerialState, VsockState};
use snapshot_format::state::{DecodeError, Reader, Section, SectionId};

use super::error::DeviceError;

/// Every device's saved state, or none for a machine that boots.
#[derive(Debug, Default)]
pub struct DeviceStates(Option<Saved>);

/// A kind of section that a device keeps, and where it waits for its device.
pub(super) trait Kept: Section {
    fn waiting(saved: &mut Saved) -> &mut Vec<(u32, Self)>;
}

macro_rules! kinds {
    ($($name:ident: $state:ident,)*) => {
        /// By kind: the instances that no device has taken yet.
        #[derive(Debug, Default)]
        pub(super) struct Saved {
            $($name: Vec<(u32, $state)>,)*
        }

        $(impl Kept for $state {
            fn waiting(saved: &mut Saved) -> &mut Vec<(u32, Self)> {
                &mut saved.$name
            }
        })*

        impl Saved {
            fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
                Ok(Saved { $($name: read_kind(reader)?,)* })
            }

            fn leftover(&self) -> Option<(SectionId, u32)> {
                $(if let Some((instance, _)) = self.$name.first() {
                    return Some(($state::ID, *instance));
                })*
                None
            }
        }
    };
}

// One line for each kind of device that has a state.
kinds! {
    serial: SerialState,
    block: BlockState,
    vsock: VsockState,
    rng: RngState,
    port: PortState,
}

fn read_kind<S: Section>(reader: &mut Reader) -> Result<Vec<(u32, S)>, DecodeError> {
    let instances = reader.instances(S::ID);
    instances.into_iter().map(|instance| Ok((instance, reader.take(instance)?))).collect()
}

impl DeviceStates {
    /// Takes every device's section out of `reader`.
    ///
    /// # Errors
    /// A section cannot be decoded.
    pub fn take(reader: &mut Reader) -> Result<Self, DecodeError> {
        Saved::read(reader).map(|saved| DeviceStates(Some(saved)))
    }

    /// Whether there is a guest that ran before.
    pub(super) fn is_saved(&self) -> bool {
        self.0.is_some()
    }

    /// The saved state of one device; `None` when the machine boots.
    ///
    /// # Errors
    /// The machine does not boot, and this device was not saved.
    pub(super) fn of<S: Kept>(&mut self, instance: u32) -> Result<Option<S>, DeviceError> {
        let Some(saved) = self.0.as_mut() else { return Ok(None) };
        let waiting = S::waiting(saved);
        let missing = DeviceError::Missing { section: S::ID, instance };
        let at = waiting.iter().position(|(number, _)| *number == instance).ok_or(missing)?;
        Ok(Some(waiting.swap_remove(at).1))
    }

    /// Ends the taking.
    ///
    /// # Errors
    /// A device was saved that this machine does not have.
    pub(super) fn finish(self) -> Result<(), DeviceError> {
        match self.0.as_ref().and_then(Saved::leftover) {
            Some((section, instance)) => Err(DeviceError::Leftover { section, instance }),
            None => Ok(()),
        }
    }
}
