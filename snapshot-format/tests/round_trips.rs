//! Whatever can be written reads back the same.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod support;

use std::collections::BTreeMap;

use proptest::prelude::*;
use snapshot_format::index::{Builder, Chunk, Encoder, Granule, MemoryIndex, Place};
use snapshot_format::manifest::Manifest;
use snapshot_format::sections::{
    Blob, BlockState, MachineState, PortState, QueueState, RegionState, RngState, SerialState, VcpuState,
    VirtioState, VmState, VsockConnectionState, VsockState,
};
use snapshot_format::state::{FormatVersion, Reader, Writer};
use snapshot_format::working_set::{PageRange, WorkingSet};
use snapshot_format::{crc::crc64, zero};
use support::machine;

const PAGE: u64 = zero::PAGE as u64;

fn granule() -> impl Strategy<Value = Granule> {
    (12u32..=16).prop_map(|shift| Granule::new(1 << shift).unwrap())
}

fn blob() -> impl Strategy<Value = Blob> {
    prop::collection::vec(any::<u8>(), 0..300).prop_map(Blob)
}

prop_compose! {
    fn vm_state()(blobs in prop::array::uniform4(blob()), frozen_at_unix_ns in any::<u64>()) -> VmState {
        let [clock, pic_master, pic_slave, ioapic] = blobs;
        VmState { clock, pic_master, pic_slave, ioapic, frozen_at_unix_ns }
    }
}

prop_compose! {
    fn vcpu_state()(index in any::<u32>(), blobs in prop::array::uniform10(blob())) -> VcpuState {
        let [cpuid, mp_state, regs, sregs, xsave, xcrs, debugregs, lapic, msrs, events] = blobs;
        VcpuState { index, cpuid, mp_state, regs, sregs, xsave, xcrs, debugregs, lapic, msrs, events }
    }
}

prop_compose! {
    fn machine_state()(
        vcpus in any::<u32>(), tsc_khz in any::<u32>(), regions in prop::collection::vec(any::<[u64; 3]>(), 0..4),
    ) -> MachineState {
        let region = |[start, len, file_offset]: [u64; 3]| RegionState { start, len, file_offset };
        MachineState { vcpus, regions: regions.into_iter().map(region).collect(), tsc_khz }
    }
}

prop_compose! {
    fn serial_state()(registers in any::<[u8; 9]>(), in_buffer in prop::collection::vec(any::<u8>(), 0..80)) -> SerialState {
        let [
            baud_divisor_low, baud_divisor_high, interrupt_enable, interrupt_identification, line_control, line_status,
            modem_control, modem_status, scratch,
        ] = registers;
        SerialState {
            baud_divisor_low, baud_divisor_high, interrupt_enable, interrupt_identification, line_control, line_status,
            modem_control, modem_status, scratch, in_buffer,
        }
    }
}

prop_compose! {
    fn queue_state()(words in any::<[u16; 4]>(), ready in any::<bool>(), event_idx in any::<bool>(), rings in any::<[u64; 3]>()) -> QueueState {
        let [max_size, size, next_avail, next_used] = words;
        let [desc_table, avail_ring, used_ring] = rings;
        QueueState { max_size, size, ready, event_idx, next_avail, next_used, desc_table, avail_ring, used_ring }
    }
}

prop_compose! {
    fn virtio_state()(
        id in "[a-z0-9-]{0,16}",
        words in any::<[u32; 7]>(),
        driver_features in any::<u64>(),
        queues in prop::collection::vec(queue_state(), 0..4),
    ) -> VirtioState {
        let [
            device_type, status, interrupt_status, features_select, driver_features_select, queue_select, config_generation,
        ] = words;
        VirtioState {
            id, device_type, status, interrupt_status, features_select, driver_features_select, driver_features,
            queue_select, config_generation, queues,
        }
    }
}

fn connections() -> impl Strategy<Value = Vec<VsockConnectionState>> {
    let connection = any::<[u32; 7]>().prop_map(
        |[host_port, guest_port, forwarded, received, sent, peer_buffer, peer_forwarded]| {
            VsockConnectionState {
                host_port,
                guest_port,
                forwarded,
                received,
                sent,
                peer_buffer,
                peer_forwarded,
            }
        },
    );
    prop::collection::vec(connection, 0..4)
}

prop_compose! {
    fn vsock_state()(
        transport in virtio_state(), guest_cid in any::<u64>(), control in connections(), other in connections(),
    ) -> VsockState {
        VsockState { transport, guest_cid, control, other }
    }
}

fn chunk() -> impl Strategy<Value = Chunk> {
    let parent = (1u16..4, 0u64..100);
    prop_oneof![
        Just(Chunk { place: Place::Zero, crc: 0 }),
        any::<u64>().prop_map(|crc| Chunk { place: Place::Here, crc }),
        (parent, any::<u64>()).prop_map(|((generation, at), crc)| {
            Chunk { place: Place::Parent { generation, offset: at * Granule::MAX.bytes() }, crc }
        }),
    ]
}

/// Ascending ranges with gaps, out of (gap, count) pairs.
fn ranges(parts: &[(u32, u32)]) -> Vec<PageRange> {
    let mut free = 0;
    let mut ranges = Vec::new();
    for (gap, count) in parts {
        let first = free + gap;
        ranges.push(PageRange { first, count: *count });
        free = first + count + 1;
    }
    ranges
}

proptest! {
    #[test]
    fn a_state(
        machine in machine_state(), vm in vm_state(), vcpus in prop::collection::vec(vcpu_state(), 1..4),
        serial in serial_state(), sequence in any::<u32>(), bytes in any::<[[u8; 32]; 2]>(),
    ) {
        let mut writer = Writer::new(FormatVersion::CURRENT);
        writer.put(0, &machine).unwrap();
        writer.put(0, &vm).unwrap();
        writer.put(0, &serial).unwrap();
        for (index, vcpu) in (0u32..).zip(&vcpus) {
            writer.put(index, vcpu).unwrap();
        }
        let [input, output] = bytes.map(Vec::from);
        let port = PortState { sequence, input, output };
        writer.put(7, &port).unwrap();
        let mut reader = Reader::from_vec(writer.finish().unwrap()).unwrap();
        prop_assert_eq!(reader.take::<MachineState>(0).unwrap(), machine);
        prop_assert_eq!(reader.take::<VmState>(0).unwrap(), vm);
        prop_assert_eq!(reader.take::<SerialState>(0).unwrap(), serial);
        for (index, vcpu) in (0u32..).zip(vcpus) {
            prop_assert_eq!(reader.take::<VcpuState>(index).unwrap(), vcpu);
        }
        prop_assert_eq!(reader.take::<PortState>(7).unwrap(), port);
        reader.finish().unwrap();
    }

    #[test]
    fn devices(transport in virtio_state(), sectors in any::<u64>(), read_only in any::<bool>(), vsock in vsock_state()) {
        let block = BlockState { transport: transport.clone(), sectors, read_only };
        let rng = RngState { transport };
        let mut writer = Writer::new(FormatVersion::V1_0);
        writer.put(1, &block).unwrap();
        writer.put(2, &vsock).unwrap();
        writer.put(3, &rng).unwrap();
        let mut reader = Reader::from_vec(writer.finish().unwrap()).unwrap();
        prop_assert_eq!(reader.take::<BlockState>(1).unwrap(), block);
        prop_assert_eq!(reader.take::<VsockState>(2).unwrap(), vsock);
        prop_assert_eq!(reader.take::<RngState>(3).unwrap(), rng);
        reader.finish().unwrap();
    }

    #[test]
    fn an_index_chunk_by_chunk(granule in granule(), chunks in prop::collection::vec(chunk(), 1..200), tail in 1u64..=16) {
        // The last chunk may be short.
        let last = (tail * PAGE).min(granule.bytes());
        let machine = machine((chunks.len() as u64 - 1) * granule.bytes() + last);
        let mut encoder = Encoder::new(&machine, granule).unwrap();
        for chunk in &chunks {
            encoder.push(*chunk).unwrap();
        }
        let bytes = encoder.finish().unwrap();
        let index = MemoryIndex::decode(&bytes).unwrap();
        index.map().check_machine(&machine).unwrap();
        let read: Vec<Chunk> = index.chunks().map(|(_, chunk)| chunk).collect();
        prop_assert_eq!(read, chunks);
        prop_assert_eq!(index.encode().unwrap(), bytes);
    }

    #[test]
    fn an_index_of_content(granule in granule(), pieces in prop::collection::vec((0usize..40_000, prop::collection::vec(any::<u8>(), 0..9000)), 0..12)) {
        // Memory as it would lie in the file, and the same content in pieces.
        let mut memory = vec![0u8; 512 << 10];
        let mut builder = Builder::new(&machine(memory.len() as u64), granule).unwrap();
        let mut at = 0;
        for (gap, bytes) in &pieces {
            at += gap;
            memory[at..at + bytes.len()].copy_from_slice(bytes);
            builder.add(at as u64, bytes).unwrap();
            at += bytes.len();
        }
        let index = MemoryIndex::decode(&builder.finish().unwrap()).unwrap();
        for (number, chunk) in index.chunks() {
            let (start, len) = index.map().extent(number).unwrap();
            let content = &memory[usize::try_from(start).unwrap()..usize::try_from(start + len).unwrap()];
            let place = if zero::is_zero(content) { Place::Zero } else { Place::Here };
            prop_assert_eq!(chunk, Chunk { place, crc: crc64(content) });
        }
    }

    #[test]
    fn a_working_set(
        read in prop::collection::vec((0u32..50, 1u32..50), 0..60),
        write in prop::collection::vec((0u32..50, 1u32..50), 0..60),
        late in prop::collection::vec((0u32..50, 1u32..50), 0..60),
        index_mark in any::<u64>(),
    ) {
        let (read, write, late_write) = (ranges(&read), ranges(&write), ranges(&late));
        let late_read = read.clone();
        let set = WorkingSet { memory_len: 64 << 20, index_mark, read, write, late_read, late_write };
        prop_assert_eq!(WorkingSet::decode(&set.encode().unwrap()).unwrap(), set);
    }

    #[test]
    fn a_manifest(
        vcpus in 1u32..=8,
        pages in 512u64..2_097_152,
        command in prop::collection::vec("[^\0]{0,20}", 1..5),
        env in prop::collection::btree_map("[A-Z_]{1,10}", "[^\0]{0,20}", 0..5),
        cmdline in "[ -~]{0,100}",
    ) {
        let mut manifest: Manifest = support::manifest(FormatVersion::CURRENT);
        manifest.machine.vcpus = vcpus;
        manifest.machine.memory_bytes = pages * PAGE;
        manifest.machine.kernel_cmdline = cmdline;
        manifest.files.get_mut("memory").unwrap().len = pages * PAGE;
        manifest.function.command = command;
        manifest.function.env = env.into_iter().collect::<BTreeMap<_, _>>();
        prop_assert_eq!(Manifest::from_json(&manifest.to_json().unwrap()).unwrap(), manifest);
    }

    #[test]
    fn no_bytes_at_all_panic_a_decoder(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        for (name, entry) in snapshot_format::fuzz_entry::TARGETS {
            prop_assert_ne!(entry(&bytes), snapshot_format::fuzz_entry::Verdict::Broken, "{}", name);
        }
    }
}
